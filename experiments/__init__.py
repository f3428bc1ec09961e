"""The full-scale studies, run as modules; ``python -m experiments`` runs them all.

A study is a module with ``TASKS``, each plain data with a name, and ``run``, which runs one of them. ``NEEDS`` names
the studies whose results it reads. Nothing else lists the studies.
"""

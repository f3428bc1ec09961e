"""A toy objective: weighted likelihood, which descends the forward KL to the target, with a learned normaliser.

A path of the policy is weighed by its importance for the target, self-normalised over the batch; the learned number
follows the ELBO, so that a checkpoint has something of its own to keep.
"""

from dataclasses import dataclass

from companion.plain import storable


@storable
@dataclass(frozen=True)
class WeightedLikelihood:
    """Minus the weighted log-likelihood of the batch."""

    beta: float = 1.0

    def parameters(self, like):
        """One number, 0-d."""
        return [like.new_zeros(()).requires_grad_()]

    def loss(self, batch, learned):
        """A scalar with gradients."""
        e = batch.log_weights(beta=self.beta).detach()
        likelihood = (e.softmax(dim=0) * batch.log_pi.sum(dim=1)).sum()
        return 0.5 * (learned[0] - e.mean()).square() - likelihood

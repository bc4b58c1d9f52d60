"""What the server makes of the clients' average: by default the new weights; or a step of Adam towards it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

MOMENTS = ("first:", "second:")  # what their names begin with


@dataclass(frozen=True)
class FedAdam:
    """FedAdam (Reddi et al., ICLR 2021, alg. 2): d = average - w is the gradient's stand-in, per parameter.

        m = beta1 m + (1 - beta1) d,  v = beta2 v + (1 - beta2) d^2,  w = w + learning_rate * m / (sqrt(v) + tau)

    Without bias correction, as there, and m = v = 0 at first. learning_rate and tau are tuned by task there; ours make
    the first steps of a client's usual size (1e-3 per round and weight) about as large as an average's.
    """

    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], moments: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The new weights; `moments`, by `first:name` and `second:name`, are replaced.

        What nobody trained (its average is the very tensor it was) keeps its weights and its moments.
        """
        stepped = dict(averages)
        for name, old in weights.items():
            if averages[name] is old:
                continue
            change = averages[name] - old
            first = (1 - self.beta1) * change + self.beta1 * moments.get(f"first:{name}", 0.0)
            second = (1 - self.beta2) * change.square() + self.beta2 * moments.get(f"second:{name}", 0.0)
            moments |= {f"first:{name}": first, f"second:{name}": second}
            stepped[name] = old + self.learning_rate * first / (second.sqrt() + self.tau)
        return stepped

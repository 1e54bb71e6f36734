"""The gradient noise scale from gradients: norms of examples, of micro-batches and of ranks, off a loop's own passes.

`PerExampleNorms` measures every example's gradient by hooks on the layers, `noise_scale` the noise scale of one batch;
`foreshock.probes.NoiseScale` watches a training. The numbers' side is `foreshock.batch_size`.
"""

from foreshock.noise.examples import ExampleNorms, PerExampleNorms
from foreshock.noise.once import noise_scale

__all__ = ["ExampleNorms", "PerExampleNorms", "noise_scale"]

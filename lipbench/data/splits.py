"""Training, pair, validation and test split of a data set on a device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.dataset import Dataset, Raw, Task
from lipbench.threat import Box

_LEVELS = 255
"""What the bytes of an image are divided by."""
_HARDLY_ANY = 0.01
"""Share of test samples that may equal others: a grid of a regression does at some points."""
_LARGE = 2**24
"""Numbers in a split from which on it pays to read bytes: what fits a cache is read at once."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of one step, and the loss that their task fixes."""

    inputs: Float[Tensor, "batch *shape"]
    targets: Tensor
    task: Task = "classification"
    box: Box | None = (0.0, 1.0)
    index: Int[Tensor, " batch"] | None = None
    """Position of each sample in the training split, for state per sample; None elsewhere."""
    data: "Data | None" = None
    """What the batch is drawn from in training, the same for all trials; None elsewhere."""

    def losses(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, " batch"]:
        """Return the loss of each sample: cross entropy in nats, or squared error."""
        if self.task == "classification":
            return cross_entropy(outputs, self.targets)
        return (outputs - self.targets).square().sum(dim=1)

    def loss(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, ""]:
        """Return the mean loss of the batch."""
        return self.losses(outputs).mean()

    def correct(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, " batch"]:
        """Return 1 for each sample classified correctly, else 0; NaN logits are never correct."""
        label_logit = outputs.take_along_dim(self.targets.unsqueeze(1), dim=1).squeeze(1)
        return ((outputs.argmax(dim=1) == self.targets) & label_logit.isfinite()).to(outputs.dtype)


def cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return -log(softmax of the label), in nats.

    Under vmap this is fewer and faster operations than torch's, which looks for labels to ignore.
    """
    # The largest logit is a constant here: whatever is subtracted, the result is the same.
    shifted = logits - logits.detach().amax(dim=1, keepdim=True)
    label_logit = shifted.take_along_dim(labels.unsqueeze(1), dim=1).squeeze(1)
    return shifted.exp().sum(dim=1).log() - label_logit


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some samples of a data set."""

    inputs: Float[Tensor, "samples *shape"]
    targets: Tensor
    index: Int[np.ndarray, " samples"]
    """Position of each sample in the published training (or test) set, after class selection."""

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, chosen: Int[Tensor, "trials batch"]) -> Float[Tensor, "trials batch *shape"]:
        """Return the inputs of these samples, in memory of their own."""
        # Whole rows are copied at once, which inputs[chosen] does not do.
        if self._bytes is None:
            inputs = self.inputs.index_select(0, chosen.flatten())
        else:
            inputs = _floats(self._bytes.index_select(0, chosen.flatten()))
        return inputs.unflatten(0, chosen.shape)

    @cached_property
    def _bytes(self) -> Tensor | None:
        """The inputs in a quarter of the memory if they are images and nothing is lost."""
        if self.inputs.dtype != torch.float32 or self.inputs.numel() < _LARGE:
            return None
        rounded = (self.inputs * _LEVELS).round().clamp_(0, _LEVELS).to(torch.uint8)
        return rounded if torch.equal(_floats(rounded), self.inputs) else None


@dataclass(frozen=True, kw_only=True)
class Data:
    """The four disjoint splits of a data set, all on one device."""

    dataset: Dataset
    train: Split
    pairs: Split
    """X_Lip: never trained on, never used to choose a checkpoint."""
    validation: Split
    test: Split
    batch_size: int = 128
    """How many training samples a step sees; the last step of an epoch may see fewer."""

    @property
    def task(self) -> Task:
        """Return what is learnt from the data."""
        return self.dataset.task

    @property
    def box(self) -> Box | None:
        """Return the smallest and largest value of a valid input, None if there is no limit."""
        return self.dataset.box

    @cached_property
    def shared_test_inputs(self) -> tuple[str, ...]:
        """Say so if test inputs are, bit for bit, inputs of other splits; nothing if hardly any."""
        others = (self.train, self.pairs, self.validation)
        seen = {hash(row) for split in others for row in _bits(split.inputs)}
        count = sum(hash(row) in seen for row in _bits(self.test.inputs))
        if count <= _HARDLY_ANY * len(self.test):
            return ()
        return (f"{count} of {len(self.test)} test inputs are among the training inputs",)

    def base_points(self, count: int | None, rng: torch.Generator) -> Float[Tensor, "count *shape"]:
        """Return points to form pairs around: drawn pair samples, or the data set's sampler's.

        Args:
            count: How many; None takes the whole pair set in its order.
            rng: Source of the draw, on the CPU.

        Raises:
            ValueError: If the data set has fewer pair samples than `count`.
        """
        like = self.train.inputs
        if self.dataset.pair_sampler:
            seed = int(torch.randint(2**62, (), generator=rng))
            sampled = self.dataset.sample_pairs(count or 0, np.random.default_rng(seed))
            return torch.as_tensor(sampled, dtype=like.dtype, device=like.device)
        if count is None:
            return self.pairs.inputs
        if count > len(self.pairs):
            raise ValueError(
                f"{count} pairs are asked for, but pair_size is {len(self.pairs)}: "
                "raise pair_size of the data set or lower the number of pairs."
            )
        chosen = torch.randperm(len(self.pairs), generator=rng)[:count]
        return self.pairs.inputs[chosen.to(like.device)]


def split(
    dataset: Dataset,
    raw: Raw,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Data:
    """Return `raw`, split as `dataset` says, on a device.

    The published training set is shuffled by `split_seed`; validation, pair and training samples
    are taken from it in this order, so that they are disjoint and a smaller training set is a
    part of a larger one.

    Raises:
        ValueError: If the sizes exceed the samples there are.
    """
    train_inputs, train_targets = _keep_classes(dataset, raw.train_inputs, raw.train_targets)
    test_inputs, test_targets = _keep_classes(dataset, raw.test_inputs, raw.test_targets)
    order = np.random.default_rng(dataset.split_seed).permutation(len(train_inputs))
    held_out = dataset.validation_size + dataset.pair_size
    available = len(order) - held_out
    size = available if dataset.train_size is None else dataset.train_size
    if size > available or size < 1:
        raise ValueError(
            f"{type(dataset).__name__} has {len(order)} training samples, which cannot give "
            f"{size} for training after {dataset.pair_size} for pairs and "
            f"{dataset.validation_size} for validation."
        )
    validation, pairs, train = np.split(
        order[: held_out + size], [dataset.validation_size, held_out]
    )

    def subset(inputs: np.ndarray, targets: np.ndarray, index: np.ndarray) -> Split:
        kind = torch.int64 if dataset.task == "classification" else dtype
        # A copy each: products of a tensor at an odd address may round otherwise.
        return Split(
            inputs=torch.tensor(inputs[index], dtype=dtype, device=device),
            targets=torch.tensor(targets[index], dtype=kind, device=device),
            index=index,
        )

    return Data(
        dataset=dataset,
        train=subset(train_inputs, train_targets, train),
        pairs=subset(train_inputs, train_targets, pairs),
        validation=subset(train_inputs, train_targets, validation),
        test=subset(test_inputs, test_targets, np.arange(len(test_inputs))),
    )


def _bits(inputs: Tensor) -> Iterator[bytes]:
    """Yield the bits of each sample; those of 0 and -0 are the same."""
    for part in inputs.split(1000):
        yield from (row.tobytes() for row in (part + 0.0).flatten(1).cpu().numpy())


def _floats(values: Tensor) -> Tensor:
    return values.to(torch.float32).div_(_LEVELS)


def _keep_classes(
    dataset: Dataset, inputs: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if not dataset.classes:
        return inputs, targets
    kept = np.isin(targets, dataset.classes)
    renumbered = np.zeros(dataset.published_outputs, dtype=np.int64)
    renumbered[list(dataset.classes)] = np.arange(len(dataset.classes))
    return inputs[kept], renumbered[targets[kept]]

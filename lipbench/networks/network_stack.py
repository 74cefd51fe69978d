"""A stack of networks of one architecture, evaluated as one."""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import pad_sequence

from lipbench.adversary import Classifier
from lipbench.networks.trees import Tree, take, tree_map

Forward = Callable[[Tree, Tree, Tensor], Tensor]
"""Outputs of one network, from its parameters, buffers and inputs."""


class Networks:
    """Networks of one architecture with stacked parameters: trees have a leading network axis."""

    def __init__(
        self, call: Forward, params: Tree, buffers: Tree, modules: Sequence[nn.Module] = ()
    ) -> None:
        """Take the function of one network, and the numbers of all.

        Args:
            call: Outputs of one network; pure tensor code, unless there is only one.
            params: Their parameters.
            buffers: Their buffers.
            modules: The networks as modules, if they are.
        """
        self.call, self.params, self.buffers, self.modules = call, params, buffers, tuple(modules)
        self._subsets: dict[tuple[int, ...], tuple[Tree, Tree]] = {}

    @classmethod
    def of(cls, modules: Sequence[nn.Module]) -> "Networks":
        """Return modules of one architecture as networks in evaluation mode, in their order.

        Raises:
            RuntimeError: If their parameters differ in shape.
        """
        params, buffers = stack_module_state(list(modules))
        code = copy.deepcopy(modules[0]).to("meta").eval()

        def call(params: Tree, buffers: Tree, inputs: Tensor) -> Tensor:
            outputs: Tensor = functional_call(code, (dict(params), dict(buffers)), (inputs,))
            return outputs

        return cls(call, tree_map(torch.Tensor.detach, params), buffers, modules)

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def alone(self, number: int) -> Classifier:
        """Return one of the networks: the module itself if it is one."""
        if self.modules:
            return self.modules[number]
        params, buffers = take(self.params, number), take(self.buffers, number)
        return lambda inputs: self.call(params, buffers, inputs)

    def classifier(self, owner: Int[Tensor, " samples"]) -> Classifier:
        """Return the classifier of samples that belong to these networks, given by number."""
        first = int(owner[0]) if len(owner) else 0
        return self.alone(first) if bool((owner == first).all()) else StackClassifier(self, owner)

    def subset(self, numbers: Sequence[int]) -> tuple[Tree, Tree]:
        """Return the parameters and buffers of some of the networks, stacked."""
        if len(numbers) == len(self):
            return self.params, self.buffers
        key = tuple(numbers)
        if key not in self._subsets:
            # One is kept: attacks ask the same networks many times in a row.
            self._subsets.clear()
            rows = list(numbers)
            self._subsets[key] = (
                tree_map(lambda value: value[rows], self.params),
                tree_map(lambda value: value[rows], self.buffers),
            )
        return self._subsets[key]


class StackClassifier:
    """One classifier that answers each sample by the network it belongs to.

    All networks are asked in one call, on as many samples each as the one with most has: the
    others' are filled up with zeros.
    """

    def __init__(self, networks: Networks, owner: Int[Tensor, " samples"]) -> None:
        """Take the number of each sample's network."""
        self.networks, self.owner = networks, owner
        self._order: Tensor | None = None
        if len(owner) > 1 and bool((owner[1:] < owner[:-1]).any()):
            self._order = owner.argsort(stable=True)
        counts = owner.bincount(minlength=len(networks)).tolist()
        self._present = [number for number, count in enumerate(counts) if count]
        self._counts = [counts[number] for number in self._present]

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers of all networks, by name."""
        trees = {"params": self.networks.params, "buffers": self.networks.buffers}
        return {f"{kind}/{name}": v for kind, tree in trees.items() for name, v in tree.items()}

    def on_rows(self, rows: Tensor) -> "StackClassifier":
        """Return the classifier of the samples that `rows` selects, in that order."""
        return StackClassifier(self.networks, self.owner[rows])

    def __call__(self, inputs: Float[Tensor, "samples *shape"]) -> Float[Tensor, "samples classes"]:
        """Return the outputs.

        Raises:
            ValueError: If these are not the samples it was made for.
        """
        if len(inputs) != len(self.owner):
            raise ValueError(f"it answers {len(self.owner)} samples in order, got {len(inputs)}.")
        if len(self._present) <= 1:
            return self.networks.alone((self._present or [0])[0])(inputs)
        if self._order is None:
            return self._answer(inputs)
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(back), device=back.device)
        return self._answer(inputs[self._order])[back]

    def _answer(self, inputs: Tensor) -> Tensor:
        most = max(self._counts)
        even = min(self._counts) == most
        if even:
            grouped = inputs.unflatten(0, (len(self._present), most))
        else:
            grouped = pad_sequence(list(inputs.split(self._counts)), batch_first=True)
        outputs = vmap(self.networks.call)(*self.networks.subset(self._present), grouped)
        if even:
            return outputs.flatten(0, 1)
        return torch.cat([rows[:count] for rows, count in zip(outputs, self._counts, strict=True)])

"""An ONNX graph as the encoder of an expert: no parameters, no gradient, run by onnxruntime beside torch.

Letters: I items, T vectors of one item, E width.

The graph is cut to the one value that is read (``onnx_graph.cut_graph``), so that heads behind it cost nothing. The
files stay files: a saved model holds the same bytes, a pickled one carries them. onnxruntime is imported when the
encoder runs, and only then; libraries of custom operators are never loaded.

``settings`` is ``onnx`` of the expert's entry in the configuration:

- ``file``: the graph; ``data``: name of each file of external data, as the graph spells it -> where it is.
- ``sha256``: file -> SHA-256 (of a graph that is kept by reference it stands in ``reference``).
- ``inputs``: native name of what the processor makes -> input of the graph; ``output``: the value that is read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from .onnx_graph import Value, cut_graph, read_graph

__all__ = ["MAIN_INPUTS", "OnnxEncoder", "file_digest"]

MAIN_INPUTS = ("pixel_values", "input_features", "input_values", "flattened_patches")
"""What native processors call the tensor that holds the items."""

_INSTALL = "pip install onnxruntime (or 'mcompose[onnx]')"
_CHUNK = 1 << 22

logger = logging.get_logger(__name__)


class OnnxEncoder(nn.Module):
    """One ONNX graph that makes vectors of items.

    Args:
        name: The expert's name, for messages.
        settings: See the module.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.settings = dict(settings)
        self.contents: dict[str, Path | bytes] = {}
        self._session: tuple[Any, Any] = (None, None)

    @property
    def files(self) -> list[str]:
        """The graph and its external data, as the settings name them."""
        return [self.settings["file"], *self.settings.get("data", {}).values()]

    @property
    def known(self) -> list[str]:
        """Native names that it takes, the one that holds the items first."""
        return sorted(self.settings["inputs"], key=lambda key: (key not in MAIN_INPUTS, key))

    def attach(self, paths: Mapping[str, Path], digests: Mapping[str, str]) -> None:
        """Gives it its files.

        Args:
            paths: File, as the settings name it, to where it lies.
            digests: File to its SHA-256.

        Raises:
            ValueError: A file is not the one that was composed.
        """
        for file in self.files:
            found = file_digest(paths[file])
            if found != digests.get(file):
                raise ValueError(
                    f"{file} is not the file that the expert {self.name!r} was composed with: its SHA-256 is {found}, "
                    f"not {digests.get(file)}. Fetch it again."
                )
        self.contents = {file: Path(paths[file]) for file in self.files}

    def save(self, folder: Path) -> None:
        """Writes the files under their names into a folder.

        Raises:
            ValueError: They were never given to it.
        """
        for file in self.files:
            target = folder / file
            data = self._content(file)
            if isinstance(data, Path) and target.exists() and target.samefile(data):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # A link of the Hub's cache is replaced, not written through.
            fresh = target.with_name(f".{target.name}.partial")
            with fresh.open("wb") as stream:
                for block in _read_blocks(data):
                    stream.write(block)
            fresh.replace(target)

    @torch.no_grad()
    def forward(self, return_dict: bool = True, **given: torch.Tensor) -> BaseModelOutput:
        """Runs the graph.

        Args:
            return_dict: For the sake of those that call native encoders; there is no other way.
            **given: Tensors by native name, one row per item.

        Returns:
            ``last_hidden_state`` (I, T, E), on the device of the items.

        Raises:
            ValueError: The items are not what the graph takes, or it gives something else than vectors.
            ImportError: onnxruntime is not installed.
        """
        del return_dict
        x = self.run(given)
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        if x.dim() != 3:
            raise ValueError(f"The output of the expert {self.name!r} is {tuple(x.shape)}: neither vectors nor a map.")
        return BaseModelOutput(last_hidden_state=x)

    def run(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the graph's output (I, ...) as it is, on the device of the items."""
        main = given[self.known[0]]
        session, inputs = self._ready(main.device)
        fed = {name: given[native] for native, name in self.settings["inputs"].items() if native in given}
        for name, value in inputs.items():
            if name not in fed:
                raise ValueError(f"The expert {self.name!r} needs a tensor for its input {name!r}, and none came.")
            _check_shape(self.name, value, tuple(fed[name].shape))
        rows = next((v.shape[0] for v in inputs.values() if v.shape and isinstance(v.shape[0], int)), len(main))
        made = [
            self._run_some(session, {name: _padded_rows(fed[name], start, rows) for name in inputs}, inputs)
            for start in range(0, len(main), rows or 1)
        ]
        return torch.cat(made)[: len(main)].to(main.device) if made else main.new_zeros(0, 0, 0)

    def _run_some(self, session: Any, fed: Mapping[str, torch.Tensor], inputs: Mapping[str, Value]) -> torch.Tensor:
        rows = len(next(iter(fed.values())))
        arrays = {name: value.detach().to("cpu", _dtype(inputs[name])).numpy() for name, value in fed.items()}
        try:
            x = torch.from_numpy(session.run(None, arrays)[0])
        except _faults(_onnxruntime(self.name)) as error:
            raise ValueError(f"The ONNX graph of the expert {self.name!r} cannot run: {_line(error)}") from error
        if len(x) != rows:
            raise ValueError(f"The ONNX graph of the expert {self.name!r} gives {tuple(x.shape)} for {rows} items.")
        return x

    def _ready(self, device: torch.device) -> tuple[Any, dict[str, Value]]:
        """Returns the session for a device, made when device, threads or process are other ones than before."""
        index = 0 if device.index is None else device.index
        asked = (os.getpid(), device.type, index, torch.get_num_threads())
        if self._session[0] != asked:
            self._session = (asked, self._opened(device.type, index))
        return self._session[1]

    def _opened(self, device: str, index: int) -> tuple[Any, dict[str, Value]]:
        runtime = _onnxruntime(self.name)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait for work must not take torch's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = _whole(self._content(self.settings["file"]))
        data = self.settings.get("data", {})
        # What is not handed over would be looked for in the current folder.
        if strange := [name for name in read_graph(graph).locations if name not in data]:
            raise ValueError(f"The ONNX graph of the expert {self.name!r} names the file {strange[0]!r}, unknown here.")
        if data:
            held = [bytes(_whole(self._content(file))) for file in data.values()]
            options.add_external_initializers_from_files_in_memory(list(data), held, [len(one) for one in held])
        cut = cut_graph(graph, self.settings["output"])
        try:
            session = runtime.InferenceSession(cut, options, providers=_providers(runtime, device, index))
        except _faults(runtime) as error:
            raise ValueError(
                f"onnxruntime cannot load the graph of the expert {self.name!r}: {_line(error)}"
            ) from error
        return session, read_graph(cut).inputs

    def _content(self, file: str) -> Path | bytes:
        if file not in self.contents:
            raise ValueError(f"The expert {self.name!r} has no file {file}: load the model with from_pretrained().")
        return self.contents[file]

    def __getstate__(self) -> dict[str, Any]:
        contents = {file: bytes(_whole(data)) for file, data in self.contents.items()}
        return {**self.__dict__, "contents": contents, "_session": (None, None)}

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxEncoder:
        twin = OnnxEncoder(self.name, self.settings)
        twin.contents = dict(self.contents)
        return twin.train(self.training)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    for block in _read_blocks(path):
        found.update(block)
    return found.hexdigest()


def _read_blocks(data: Path | bytes) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as stream:
        while block := stream.read(_CHUNK):
            yield block


def _whole(data: Path | bytes) -> memoryview:
    """Returns all bytes of a file, read as they are looked at."""
    if isinstance(data, bytes) or not data.stat().st_size:
        return memoryview(data if isinstance(data, bytes) else b"")
    with data.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _onnxruntime(name: str) -> Any:
    try:
        # Inside `try`, where transformers does not take it for a package that the checkpoint's code cannot do without.
        import onnxruntime  # noqa: PLC0415 - an extra, for ONNX experts only
    except ImportError as error:
        raise ImportError(
            f"The expert {name!r} is an ONNX graph, which onnxruntime runs, and it is not installed: {_INSTALL}."
        ) from error
    return onnxruntime


def _faults(runtime: Any) -> tuple[type[Exception], ...]:
    """Returns what onnxruntime raises; its classes share no base of their own."""
    named = vars(runtime.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _providers(runtime: Any, device: str, index: int) -> list[Any]:
    """Returns where onnxruntime computes: on the card of the items if this build of it can."""
    if device == "cuda":
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
        logger.warning_once("This onnxruntime has no CUDA (pip install onnxruntime-gpu); ONNX experts run on the CPU.")
    return ["CPUExecutionProvider"]


def _check_shape(name: str, value: Value, shape: tuple[int, ...]) -> None:
    """Refuses items of another shape than the graph's; how many there are is not asked."""
    if value.shape is None:
        return
    pairs = zip(value.shape[1:], shape[1:], strict=False)
    if len(value.shape) != len(shape) or any(isinstance(said, int) and said != size for said, size in pairs):
        raise ValueError(f"The ONNX graph of the expert {name!r} takes {value}, and the items came as {shape}.")


def _padded_rows(value: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Some rows; the last one is repeated where a graph wants more than there are."""
    some = value[start : start + count]
    return some if len(some) == count else torch.cat([some, some[-1:].expand(count - len(some), *some.shape[1:])])


def _dtype(value: Value) -> torch.dtype:
    found = getattr(torch, value.dtype, None) if value.dtype not in ("", "bfloat16", "string") else None
    if found is None:
        raise ValueError(f"The input {value} of an ONNX graph is of a type that cannot be fed.")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]

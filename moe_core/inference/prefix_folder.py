"""Keys and values of beginnings of prompts as files, so that another process need not read them again.

A file has whole blocks of BLOCK tokens, and prompts are read in such blocks where a folder is given: then the passes
that read on behind a kept beginning are those that would have read on behind it anyway, and nothing differs to the bit.
A pass over another number of rows would round differently.

    FOLDER/<model>-<beginning>.safetensors     keys, values, notes of routers, experts and weights, token_ids

A file belongs to weights, tokenizer, configuration, cache and arithmetic, which its metadata tell; no other model takes
it. Text can be read off its tokens: files, and a folder that is made here, are their owner's alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from moe_core.errors import RunError, UsageError
from moe_core.files import remove_stale, replaced
from moe_core.inference.kept_prefixes import Prefix
from moe_core.inference.own_model import OwnModel
from moe_core.model.kv_cache import KVCache

BLOCK = 32
"""Tokens that are read in a pass, and that a kept beginning is a multiple of."""
MOST_BYTES = 1 << 30
FORMAT = "moescope prefix 1"
_ROUTING = ("experts", "scores")
Told = dict[str, str]
"""What a file belongs to, by name: format, weights, tokenizer, model, cache, arithmetic."""


class PrefixFolder:
    """Beginnings that a model has read, within a bound of bytes; what was used longest ago goes first.

    Several processes may use a folder at once: a file is written aside and renamed, and one that is read stays readable
    while it is removed. One thread at a time may use an object of this.
    """

    def __init__(self, folder: Path, model: OwnModel, *, most_bytes: int = MOST_BYTES) -> None:
        """Raises UsageError for a folder that cannot be made or written, and for a model whose cache is not whole or
        forgets what is out of its window's sight."""
        if model.cache.changes:
            raise UsageError(
                f"a prefix cache keeps keys and values whole, the model a {model.cache.name}; leave out one of them"
            )
        if model.model.config.attention.window is not None:
            raise UsageError(
                f"a prefix cache keeps all tokens of a beginning, and model.attention.window = "
                f"{model.model.config.attention.window} forgets some; leave out --prefix-cache"
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"no prefix cache at {str(folder)!r}: {error.strerror or error}; expected a folder to write"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"no prefix cache at {str(folder)!r}: it cannot be written; expected a folder to write")
        self.folder, self._model, self._most_bytes = folder, model, most_bytes
        self._told = _told_of(model)
        self._routers = dict(model.model.named_modules())
        self._key = hashlib.sha256(json.dumps(self._told).encode()).hexdigest()[:16]
        self._known: dict[str, tuple[int, ...]] = {}
        """Tokens of the files that were looked into, by name."""
        remove_stale(folder)

    def find(self, token_ids: list[int]) -> Prefix | None:
        """The longest kept beginning of these tokens in whole blocks, the last token left out, which a model has to
        read; None where there is none. A damaged file is removed."""
        longest, where = 0, None
        for path in self.folder.glob(f"{self._key}-*.safetensors"):
            with suppress(RunError):
                length = _common(self._tokens_of(path), token_ids) // BLOCK * BLOCK
                longest, where = max((longest, where), (length, path), key=lambda one: one[0])
        longest = min(longest, (len(token_ids) - 1) // BLOCK * BLOCK)
        if where is None or not longest:
            return None
        try:
            found = self.load(where, longest)
        except RunError:
            return None
        with suppress(OSError):
            os.utime(where)
        return found

    def put(self, prefix: Prefix) -> None:
        """Keep the whole blocks of what was read in blocks, where no file has them yet. A full disk keeps nothing."""
        length = len(prefix.token_ids) // BLOCK * BLOCK
        token_ids = prefix.token_ids[:length]
        name = f"{self._key}-{hashlib.sha256(repr(token_ids).encode()).hexdigest()[:32]}.safetensors"
        if not length or (self.folder / name).exists():
            return
        cache: KVCache = prefix.cache
        tensors = {
            "token_ids": torch.tensor(token_ids, dtype=torch.int64),
            "keys": torch.stack([keys[:, :, :length] for keys in cache.keys]),
            "values": torch.stack([values[:, :, :length] for values in cache.values]),
            "experts": torch.from_numpy(prefix.experts[:length]),
            "scores": torch.from_numpy(prefix.scores[:length]),
        }
        names = {module: name for name, module in self._routers.items()}
        tensors |= {f"notes.{names[router]}": notes for router, notes in cache.notes(length).items()}
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=self._told)
        if len(content) > self._most_bytes:
            return
        with suppress(OSError), replaced(self.folder / name) as file:
            if os.name == "posix":
                os.fchmod(file.fileno(), 0o600)
            file.write(content)
        self._make_room()

    def load(self, path: Path, length: int) -> Prefix:
        """The first `length` tokens of a file, which are copied out of it as it lies on the disk: the rest is never
        read. Raises RunError for a file that is damaged, gone, or belongs to something else."""
        try:
            with safe_open(path, framework="pt") as file:
                self._check(path, file.metadata() or {})
                cache = self._model.empty_cache()
                assert isinstance(cache, KVCache), "checked above"
                for name, rooms in (("keys", cache.keys), ("values", cache.values)):
                    kept = file.get_slice(name)
                    for layer, room in enumerate(rooms):
                        room[:, :, :length] = kept[layer, :, :, :length]
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name.startswith("notes."):
                        cache.note(self._routers[name.removeprefix("notes.")], file.get_slice(name)[:, :length])
                cache.advance(length)
                token_ids, experts, scores = (file.get_slice(name)[:length] for name in ("token_ids", *_ROUTING))
        except FileNotFoundError:
            raise RunError(f"{str(path)!r} is gone, as newer prefixes took its room; read the text anew") from None
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            with suppress(OSError):
                path.unlink()
            raise RunError(
                f"{str(path)!r} is damaged and was removed: {str(error)[:200]}; read the text anew"
            ) from None
        found = tuple(int(token) for token in token_ids)
        return Prefix(found, np.asarray(experts), np.asarray(scores), cache, cache.nbytes)

    def _tokens_of(self, path: Path) -> tuple[int, ...]:
        if path.name not in self._known:
            try:
                with safe_open(path, framework="pt") as file:
                    self._check(path, file.metadata() or {})
                    self._known[path.name] = tuple(file.get_tensor("token_ids").tolist())
            except FileNotFoundError:
                raise RunError(f"{str(path)!r} is gone") from None
            except (SafetensorError, OSError) as error:
                with suppress(OSError):
                    path.unlink()
                raise RunError(f"{str(path)!r} is damaged and was removed: {str(error)[:200]}") from None
        return self._known[path.name]

    def _check(self, path: Path, told: Told) -> None:
        """Raise RunError unless a file belongs to this model, read as it is read here."""
        for name, expected in self._told.items():
            if (found := told.get(name, "nothing")) != expected:
                raise RunError(
                    f"prefix {path.name!r} is of another {name}: {found[:64]}, expected {expected[:64]}; it is not used"
                )

    def _make_room(self) -> None:
        """Remove what was used longest ago, of any model, until the bound is kept; and what killed writers left."""
        remove_stale(self.folder)
        files = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(OSError):  # another process was quicker
                entry = path.stat()
                files.append((entry.st_mtime_ns, entry.st_size, path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self._most_bytes:
                return
            with suppress(OSError):
                path.unlink()
            self._known.pop(path.name, None)
            left -= size


def _common(kept: tuple[int, ...], token_ids: list[int]) -> int:
    """How many tokens at the beginning are the same."""
    shorter = min(len(kept), len(token_ids))
    return next((at for at in range(shorter) if kept[at] != token_ids[at]), shorter)


def _told_of(model: OwnModel) -> Told:
    weights = hashlib.sha256()
    for name, tensor in model.model.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    parts = (torch.__version__, model.device.type, torch.backends.cpu.get_cpu_capability(), f"blocks of {BLOCK}")
    return {
        "format": FORMAT,
        "weights": weights.hexdigest(),
        "tokenizer": hashlib.sha256(model.tokenizer.to_json().encode()).hexdigest(),
        "model": hashlib.sha256(model.model.config.model_dump_json().encode()).hexdigest(),
        "cache": f"{model.cache.name} of {model.context_window}",
        "arithmetic": ", ".join(parts),
    }

"""Threads that read batches ahead: the same batches, read before they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_support import begin_trainer, make_config, saved_and_restored, tensor_hashes, write_corpus

from moe_core.config import TrainingConfig
from moe_core.data.token_stream import TokensInMemory
from moe_core.errors import DataError
from moe_core.runs import RunFolder
from moe_core.training.batches import Batches

CPU = torch.device("cpu")
TEXT = TokensInMemory(np.arange(2000, dtype=np.int32))


class Watched:
    """A stream that says when a batch is read, and waits until it may be."""

    def __init__(self) -> None:
        self.reads = threading.Semaphore(0)
        self.may_read = threading.Event()
        self.may_read.set()

    def __len__(self) -> int:
        return len(TEXT)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        assert self.may_read.wait(30)
        self.reads.release()
        return TEXT.windows(starts, length)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_the_batches_of_the_step(workers: int) -> None:
    plain = Batches(TEXT, TrainingConfig(batch_size=4, seq_len=16), CPU)
    ahead = Batches(TEXT, TrainingConfig(batch_size=4, seq_len=16, data_workers=workers), CPU)
    for step in (*range(40), 70, 71):  # across epochs; a resumed run begins anywhere
        for one, other in zip(plain.of(step), ahead.of(step), strict=True):
            assert torch.equal(one, other)


def test_the_next_batch_is_read_while_the_step_computes() -> None:
    stream = Watched()
    batches = Batches(stream, TrainingConfig(batch_size=4, seq_len=16, data_workers=2), CPU)
    batches.of(0)
    for _ in range(3):  # this one and two ahead, though nobody has asked for them
        assert stream.reads.acquire(timeout=30)
    stream.may_read.clear()  # storage answers no more ...
    batches.of(1)
    batches.of(2)  # ... and a step finds what was read
    stream.may_read.set()


def test_what_cannot_be_read_is_said_by_the_step_that_needs_it() -> None:
    batches = Batches(TokensInMemory(np.arange(5, dtype=np.int32)), TrainingConfig(data_workers=1), CPU)
    with pytest.raises(DataError, match="the training text has 5 tokens"):
        batches.of(0)


def test_a_run_with_threads_is_the_run_without(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "text.jsonl")
    hashes = []
    for workers in (0, 2):
        config = make_config(corpus, training__data_workers=workers)
        assert ("data_workers" in config.model_dump_json()) is bool(workers)
        trainer = begin_trainer(RunFolder(str(workers), tmp_path), config)
        for step in range(5):
            if step == 3:
                trainer = saved_and_restored(trainer)
            trainer.step()
        trainer.save()
        hashes.append(tensor_hashes(trainer.run))
    assert hashes[0] == hashes[1]

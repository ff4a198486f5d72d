"""The form that starts a training: how large, on which text, under what name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from app import loaders, state
from app.components.new_run_fields import changed_fields
from app.components.page import errors_as_boxes, plain
from app.components.router_choice import router_choice
from moe_core.config import Config, load_config, parse_overrides
from moe_core.errors import DataError, UsageError
from moe_core.files import user_path
from moe_core.model import size
from moe_core.runs import RunFolder
from moe_core.runs.names import checkpoints_root
from moe_core.words import duration, listed, sentence, short_count

SYNTHETIC, UPLOAD, PATH = "Four made-up domains", "A file of mine", "A path on this computer"
# The presets that end by themselves within a time budget; the others are for the command line (presets.py).
SIZES = ("tiny", "small", "quick", "medium", "default", "long")
_USUAL_SIZE = SIZES.index("quick")
_PROCESS_BYTES = 2**29
"""What Python, torch and the text take beside the training step (model/size.py leaves it out)."""
FILE_TYPES = ["jsonl", "parquet", "csv", "txt"]
_OFFERED_NAME = "offered_name"
"""str: a free name, with which the form's box begins."""
# Hidden, so that it is not taken for a run. A resumed run reads its text again, so uploads stay.
_UPLOADS = ".uploads"


def new_run_form() -> None:
    """Draw the form. On success the new run becomes the chosen one; on failure a box says what to mend."""
    preset = st.radio(
        "Size",
        SIZES,
        index=_USUAL_SIZE,
        captions=[_time_words(load_config(name, environment={})) for name in SIZES],
        format_func=str.capitalize,
        horizontal=True,
        key=state.NEW_PRESET,
    )
    options = router_choice()
    options += changed_fields(load_config(preset), preset)
    fits = _show_cost(preset, options)
    source = st.segmented_control(
        "Text to learn", [SYNTHETIC, UPLOAD, PATH], required=True, default=SYNTHETIC, key=state.NEW_SOURCE
    )
    if source == UPLOAD:
        st.file_uploader(
            "Your text",
            type=FILE_TYPES,
            key=state.NEW_UPLOAD,
            help="jsonl or parquet with a field text, csv with a column Text, or plain txt. A field domain, where "
            "there is one, says what kind of text a row is; source says which rows belong to one document.",
        )
    elif source == PATH:
        st.text_input(
            "Path of a .jsonl, .parquet, .csv or .txt file, of a folder whose subfolders are domains, or of one that "
            "`data prepare` wrote",
            key=state.NEW_PATH,
            placeholder="/home/me/texts",
        )
        _show_prepared()
    else:
        st.caption("Finance, legal, code and general text from seeded grammars: the same on every computer.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        # As the box's own beginning, and the same until it is used: what is written into the state of a box that was
        # never drawn, because a click came while the form was made, is empty in the browser.
        if _OFFERED_NAME not in st.session_state:
            st.session_state[_OFFERED_NAME] = _free_name(preset)
        st.text_input("Name of the run", st.session_state[_OFFERED_NAME], key=state.NEW_NAME, max_chars=64, width=280)
        st.number_input(
            "Seed", min_value=0, max_value=2**32 - 1, value=0, key=state.NEW_SEED, width=160,
            help="The same seed gives the same weights and data order: change it to see what is luck.",
        )  # fmt: skip
        clicked = st.button(
            "Start training", type="primary", icon=":material/play_arrow:", key="start_training", disabled=not fits
        )
    if clicked:
        with errors_as_boxes("Training was not started"), st.spinner("Checking the text and starting the trainer ..."):
            start(preset, options, source, st.session_state[state.NEW_NAME], int(st.session_state[state.NEW_SEED]))
            del st.session_state[state.NEW_NAME], st.session_state[_OFFERED_NAME]
            state.fold_new_run()
            st.rerun()


def start(preset: str, options: Sequence[str], source: str | None, name: str, seed: int) -> None:
    """Check everything that can be checked, start the trainer, choose its run. Raises UsageError or DataError.

    `options`: configuration keys as on the command line.
    """
    from moe_core.training.launch import start_training

    if preset not in SIZES:
        raise UsageError(f"size {preset!r} is unknown; expected one of {', '.join(SIZES)}")
    run = RunFolder(name.strip())
    if run.exists():
        raise UsageError(f"run {run.name!r} exists already; choose another name, or resume it")
    arguments = ["--preset", preset, "--run", run.name, "--seed", str(seed), *options]
    path = _text_path(source)
    if path is not None:
        _check_text(path)
        arguments += ["--data", str(path)]
    start_training(arguments)
    loaders.forget_runs()
    state.open_run(run.name)


def _text_path(source: str | None) -> Path | None:
    if source == UPLOAD:
        upload = st.session_state.get(state.NEW_UPLOAD)
        if upload is None:
            raise UsageError(f"no file is chosen; expected one of .{', .'.join(FILE_TYPES)}")
        return keep_upload(upload.name, upload.getvalue())
    if source == PATH:
        path = str(st.session_state.get(state.NEW_PATH) or "").strip()
        if not path:
            raise UsageError("no path is given; expected a file or a folder whose subfolders are domains")
        return user_path(path).resolve()
    return None


def keep_upload(name: str, content: bytes) -> Path:
    """Keep an uploaded file beside the runs, in a folder named by its content: the same file is kept once.

    Only the ending and harmless characters of the browser's `name` are used, so it cannot lead elsewhere.
    """
    suffix = Path(name).suffix.lower()
    if suffix.removeprefix(".") not in FILE_TYPES:
        raise UsageError(f"file {name!r} has the ending {suffix!r}; expected one of .{', .'.join(FILE_TYPES)}")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem).strip("-")[:40] or "text"
    folder = checkpoints_root().resolve() / _UPLOADS / hashlib.sha256(content).hexdigest()[:16]
    path = folder / f"{stem}{suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot keep the upload in {str(folder)!r}: {error.strerror or error}; free some space"
        ) from None
    return path


def _show_prepared() -> None:
    """What a folder of shards holds, where the path leads to one."""
    from moe_core.data.shards.shard_index import is_prepared
    from moe_core.data.shards.shard_reader import ShardFolder

    path = _text_path(PATH) if str(st.session_state.get(state.NEW_PATH) or "").strip() else None
    if path is None or not is_prepared(path):
        return
    with errors_as_boxes("The folder cannot be read"):
        index = ShardFolder(path).index
        st.caption(
            plain(
                f"Prepared: {short_count(index.tokens('train'))} training tokens of {listed(index.domains)}, in a "
                f"vocabulary of {index.vocab_size:,} ids, which the run takes over. It is read as it goes, never whole."
            )
        )


def _check_text(path: Path) -> None:
    """Read and split the text as the trainer will, so that a fault shows here, with its line, and not in a log."""
    from moe_core.data.shards.shard_index import is_prepared
    from moe_core.data.shards.shard_reader import ShardFolder
    from moe_core.data.sources import read_documents
    from moe_core.data.splits import split_documents

    if is_prepared(path):
        _ = ShardFolder(path).tokenizer  # read, and held against its checksum
        return
    split_documents(read_documents(path), seed=0)


def _show_cost(preset: str, options: Sequence[str]) -> bool:
    """What the training will be and take, before it is started; False, with the reason, where it cannot be."""
    fits = False
    with errors_as_boxes("This cannot be trained"):
        config = load_config(preset, overrides=parse_overrides(options))
        size.check_fits_training(config, "cpu")
        model, cost = config.model, size.cost_of(config)
        experts = f"{len(model.moe_layers)} layers of {model.num_experts} experts, {model.top_k} for each token"
        memory = size.gib(size.training_memory(config).total + _PROCESS_BYTES)
        total, active = short_count(cost.total_parameters), short_count(cost.active_parameters)
        st.caption(
            f"{experts if model.moe_layers else 'No experts'}; {total} parameters, of which a token passes {active}. "
            f"{sentence(_time_words(config))} Preparing the text and scoring come on top, some seconds to two minutes. "
            f"About {memory} of memory."
        )
        fits = True
    others = [run.name for run in loaders.runs() if run.is_live and not run.is_watched]
    if others:
        st.caption(plain(f"In training now: {listed(others)}. Two at once share the processor, and each takes longer."))
    return fits


def _time_words(config: Config) -> str:
    """ "at most 2 min 25 s of training" """
    budget = config.training.time_budget_seconds
    return f"at most {duration(budget)} of training" if budget else f"{config.training.steps:,} steps, however long"


def _free_name(preset: str) -> str:
    taken = {run.name for run in loaders.runs()}
    return next(name for i in range(1, len(taken) + 2) if (name := f"{preset}-{i}") not in taken)

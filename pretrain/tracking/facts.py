"""What a run directory says of its run, as MLflow's parameters, tags and files, without any secrets."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.config import DataConfig, is_remote
from data_pipeline.places import open_place
from parallel.checkpoint.catalogue import published_checkpoints
from pretrain.run_directory import RunDirectory
from pretrain.tracking.describe import flatten, value_text
from pretrain.tracking.server import TrackingServer
from pretrain.tracking.uri import redact
from runtime.errors import UserError
from runtime.files import digest_file, read_json
from runtime.settings import read_yaml

CONFIG_TAG, CHANGED_TAG, SLOW_TAG = "lacuna.config_digest", "lacuna.changed", "lacuna.slow_ranks"
_CHECKPOINT_TAG = "lacuna.checkpoint."
_STATUS = {"finished": "FINISHED", "paused": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
_COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's own name
_DATA_TAG = "lacuna.data_digest"


def final_status(directory: RunDirectory) -> str | None:
    """MLflow's word for how the last attempt ended; None if nobody has noted that, or there is none."""
    metadata = read_json(directory.metadata) if directory.metadata.exists() else {}
    attempts = metadata.get("attempts") if isinstance(metadata, dict) else None
    return _STATUS.get(str(attempts[-1].get("outcome"))) if attempts else None


def shown_config(directory: RunDirectory) -> dict[str, Any]:
    """The run's configuration with the secrets of its tracking URI struck out; {} if there is none yet."""
    if not directory.config.exists():
        return {}
    values = read_yaml(directory.config)
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        tracking["uri"] = redact(tracking["uri"])
    return values


def run_parameters(directory: RunDirectory) -> dict[str, str]:
    """The configuration as parameters, which MLflow never changes again."""
    return flatten(shown_config(directory))


def run_tags(directory: RunDirectory, known: Mapping[str, str], shown: Mapping[str, str]) -> dict[str, str]:
    """Versions, commit, job, nodes, attempt, layout, digests of data. `known`: parameters that MLflow has; `shown`:
    its tags.
    """
    tags = _attempt_tags(directory)
    if _DATA_TAG not in shown or shown.get(CONFIG_TAG) != _config_digest(directory):
        tags |= _data_tags(directory)
    if directory.environment.exists():
        environment = read_json(directory.environment)
        tags |= flatten({"environment": environment})
        commit = environment.get("code", {}).get("commit") if isinstance(environment, dict) else None
        if commit:
            tags[_COMMIT_TAG] = str(commit)
    changed = {key: text for key, text in run_parameters(directory).items() if known.get(key, text) != text}
    if changed:
        tags[CHANGED_TAG] = value_text(changed)
    return tags


def _attempt_tags(directory: RunDirectory) -> dict[str, str]:
    metadata = read_json(directory.metadata) if directory.metadata.exists() else {}
    attempts = metadata.get("attempts") if isinstance(metadata, dict) else None
    if not attempts:
        return {}
    last = attempts[-1]
    nodes = last.get("nodes")
    values = {
        "attempt": len(attempts) - 1,
        "layout": last.get("layout"),
        "processes": last.get("processes"),
        "job": last.get("job"),
        "nodes": ",".join(nodes) if nodes else None,
        "outcome": last.get("outcome", "running"),
        "reason": last.get("reason"),
    }
    return {f"lacuna.{key}": value_text(value) for key, value in values.items() if value not in (None, "")}


def _data_tags(directory: RunDirectory) -> dict[str, str]:
    """The digest of the data's manifest; of each dataset of a mixture, by path."""
    digests, paths = {}, []
    with suppress(UserError):  # no configuration yet, or none that can be used
        data = DataConfig.parse(shown_config(directory).get("data") or {}, str(directory.config))
        paths = data.paths()
    for path in paths:
        with suppress(UserError, KeyError, TypeError):
            digests[path] = _manifest_digest(path, data)
    if not digests:
        return {}
    single = next(iter(digests.values())) if len(paths) == 1 else json.dumps(digests)
    return {_DATA_TAG: value_text(single)}


def _manifest_digest(path: str, data: DataConfig) -> str:
    if is_remote(path):  # a store that fails is not waited for
        return open_place(path, data.remote.model_copy(update={"patience": 0.0})).manifest().digest
    return str(read_json(Path(path) / "manifest.json")["digest"])


def _config_digest(directory: RunDirectory) -> str | None:
    return digest_file(directory.config) if directory.config.exists() else None


def send_slow_ranks(server: TrackingServer, run_id: str, slow: str | None, tags: Mapping[str, str]) -> None:
    """Let a tag name the ranks that are slow; `slow`: empty if none is, None if nothing is known of it."""
    if slow:
        server.describe(run_id, {}, {SLOW_TAG: value_text(slow)})
    elif slow is not None and SLOW_TAG in tags:
        server.remove_tags(run_id, [SLOW_TAG])


def send_config(directory: RunDirectory, server: TrackingServer, run_id: str, tags: Mapping[str, str]) -> None:
    """Store the configuration if it is not the one that `tags` speak of: `config.yaml`, and a copy under its digest."""
    digest = _config_digest(directory)
    if digest is None or tags.get(CONFIG_TAG) == digest:
        return
    text = yaml.safe_dump(shown_config(directory), sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (("config.yaml", None), (f"{digest[:8]}.yaml", "configs")):
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            server.upload(run_id, path, place)
    server.describe(run_id, {}, {CONFIG_TAG: digest})


def send_checkpoints(directory: RunDirectory, server: TrackingServer, run_id: str, tags: Mapping[str, str]) -> None:
    """Let the tags tell, of each checkpoint that there is, its URI and digest; never its bytes."""
    there = {_CHECKPOINT_TAG + path.name: path for _, path in published_checkpoints(directory.checkpoints)}
    new: dict[str, str] = {}
    for tag, path in there.items():
        if tag not in tags:
            with suppress(UserError, KeyError, TypeError):  # retired meanwhile, or damaged: then it is not told
                digest = read_json(path / "MANIFEST.json")["digest"]
                new[tag] = value_text(f"{path.absolute().as_uri()} xxh3-128:{digest}")
    server.describe(run_id, {}, new)
    server.remove_tags(run_id, [tag for tag in tags if tag.startswith(_CHECKPOINT_TAG) and tag not in there])

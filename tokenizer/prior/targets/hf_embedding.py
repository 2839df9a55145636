"""The textual target: an embedding table read straight out of a language model's safetensors; the model itself is never built."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flowprior.data.features import read_features
from flowprior.data.stores.folder_listing import is_system_file
from flowprior.errors import UserError
from flowprior.pretrained.hub_file import NoSuchFile, hub_file
from flowprior.pretrained.package_file import package_file
from flowprior.run.config import option
from flowprior.run.files import read_json
from tokenizer.prior.targets.base import TargetContext, TargetFeatures

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
REMEDY = "write target.hf_embedding.folder=<a folder that holds it>"


@dataclass
class HFEmbeddingTarget:
    """source=hf_embedding: one table of a hub repository, of a folder of safetensors, or of an installed Python package."""

    repo: str = option("Qwen/Qwen2.5-0.5B", "hub repository")
    revision: str = option("main", "branch, tag or commit of the repository")
    folder: str = option("", "a folder with the repository's safetensors, in place of the hub", changes_result=False)
    package: str = option(
        "", "an installed Python package that holds the table's .safetensors file, in place of the hub"
    )
    tensor: str = option("model.embed_tokens.weight", "name of the table, (N, d)")

    def load(self, context: TargetContext) -> TargetFeatures:
        if self.folder and self.package:
            raise UserError("target.hf_embedding.folder and .package both name a place: leave out one of them")
        name = f"{self.package or (Path(self.folder).name if self.folder else self.repo)} {self.tensor}"
        return TargetFeatures(read_features(self.find(), self.tensor, "target.hf_embedding.tensor"), name)

    def find(self) -> Path:
        """The file that holds the table; of a repository, this one and the index are all that is fetched.

        Raises:
            UserError: there is no such folder, package, repository, file or tensor.
        """
        if self.package:
            return package_file(self.package, (".safetensors",), "target.hf_embedding.package")
        return _in_folder(Path(self.folder), self.tensor) if self.folder else self._in_repository()

    def _in_repository(self) -> Path:
        try:
            return hub_file(self.repo, SINGLE, REMEDY, self.revision)
        except NoSuchFile:
            offline = None
        except UserError as error:  # without a network, a repository of several files may still lie in the cache
            offline = error
        try:
            index = hub_file(self.repo, INDEX, REMEDY, self.revision, cached_only=offline is not None)
        except NoSuchFile as error:
            raise UserError(
                f"{self.repo} has neither {SINGLE} nor {INDEX}: choose a target.hf_embedding.repo with safetensors"
            ) from error
        except UserError:
            raise offline or UserError(f"{self.repo}: {INDEX} cannot be fetched; run the same command again") from None
        file = _indexed(index, self.tensor)
        try:
            return hub_file(self.repo, file, REMEDY, self.revision, cached_only=offline is not None)
        except NoSuchFile as error:
            raise UserError(
                f"{error}, though its {INDEX} says so: choose another target.hf_embedding.revision"
            ) from error


def _indexed(index: Path, tensor: str) -> str:
    """The name of the file that holds ``tensor``, by a sharded model's index."""
    files = read_json(index, "index of a sharded model").get("weight_map")
    if not isinstance(files, dict) or not isinstance(files.get(tensor), str):
        near = [name for name in (files if isinstance(files, dict) else {}) if "embed" in name]
        raise UserError(f"{index} lists no tensor '{tensor}': {_choices(near)}")
    return files[tensor]


def _in_folder(folder: Path, tensor: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}' (target.hf_embedding.folder)")
    if (folder / INDEX).is_file():
        file = folder / Path(_indexed(folder / INDEX, tensor)).name
        if not file.is_file():
            raise UserError(
                f"{folder / INDEX} says that '{tensor}' lies in {file.name}, which is not there: put it into {folder}"
            )
        return file
    files, near = sorted(file for file in folder.glob("*.safetensors") if not is_system_file(file.name)), []
    for file in files:
        with (
            contextlib.suppress(SafetensorError),
            safe_open(file, "pt") as tensors,
        ):  # read_features names a damaged file
            if tensor in tensors.keys():
                return file
            near += [name for name in tensors.keys() if "embed" in name]
    if len(files) == 1 and not near:
        return files[0]
    if not files:
        raise UserError(f"the folder {folder} holds no .safetensors file")
    raise UserError(f"no .safetensors file in {folder} has a tensor '{tensor}': {_choices(near)}")


def _choices(names: list[str]) -> str:
    return "set target.hf_embedding.tensor" + (f" to one of {', '.join(sorted(names)[:4])}" if names else "")

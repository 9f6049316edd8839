"""What the Hub says about a model, without its weights: commit, config, tokenizer files and safetensors headers.

Asks for metadata only and within a few seconds; the weights are fetched by the child that first loads the model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.shape import ModelShape, shape_of

_TIMEOUT = 8.0  # seconds for one answer of the Hub
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class HubModel(Frozen):
    hub_id: str
    revision: str  # the commit
    shape: ModelShape


def look_up(hub_id: str, local: str) -> HubModel:
    """A model on the Hub as it is now. `local` names what is on this machine, for the sentence where it fails.

    Raises UserError in one sentence: not reachable, not found, not public, or not in a form that Graft reads.
    """
    # huggingface_hub reads these when it is first imported, and would otherwise wait and try again for a minute.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(_TIMEOUT)))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(int(_TIMEOUT)))
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        SafetensorsParsingError,
    )

    api = HfApi(library_name="graft")
    try:
        info = api.model_info(hub_id, timeout=_TIMEOUT)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        if "config.json" not in names:
            raise UserError(f"{hub_id} on the Hub has no config.json: it is not a transformers model. {local}")
        if not names & set(_TOKENIZER_FILES):
            raise UserError(f"{hub_id} on the Hub has no tokenizer that Graft reads (tokenizer.json). {local}")
        if not any(name.endswith(".safetensors") for name in names):
            raise UserError(f"{hub_id} on the Hub has no safetensors weights, and Graft reads no other kind. {local}")
        config = _config(Path(api.hf_hub_download(hub_id, "config.json", revision=info.sha)), hub_id)
        template = "chat_template.jinja" in names
        if not template and "tokenizer_config.json" in names:
            file = api.hf_hub_download(hub_id, "tokenizer_config.json", revision=info.sha)
            template = bool(_config(Path(file), hub_id).get("chat_template"))
        weights = api.get_safetensors_metadata(hub_id, revision=info.sha)
    except GatedRepoError as error:
        raise UserError(
            f"{hub_id} is shown on the Hub only to people who accepted its terms: accept them there and set HF_TOKEN. "
            f"{local}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"The Hub has no model {hub_id!r}, or it is private. {local}") from error
    except HFValidationError as error:
        raise UserError(f"{hub_id!r} is not a Hub id; it should read owner/name. {local}") from error
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise UserError(f"The safetensors weights of {hub_id} could not be read. {local}") from error
    except (OfflineModeIsEnabled, httpx2.HTTPError, LocalEntryNotFoundError, OSError, HfHubHTTPError) as error:
        raise UserError(f"The Hugging Face Hub does not answer, so {hub_id} cannot be looked up. {local}") from error
    tensors = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape}
        for file in weights.files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    return HubModel(hub_id=hub_id, revision=str(info.sha), shape=shape_of(config, tensors, has_chat_template=template))


def _config(file: Path, hub_id: str) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} of {hub_id} is not valid JSON ({error}).") from error

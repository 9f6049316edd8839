"""Preference tuning on pairs of answers: DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), ORPO (Hong et al. 2024).
DPO may learn the better answers beside (Pang et al. 2024: RPO).

The formulas are TRL 1.16's, held against it in tests/test_tasks_preference.py; written here so that the run's own
batches, masks, checkpoints and loops serve them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from jobs.data.columns import Mapping, Shape
from jobs.data.conversation import before_answer
from jobs.data.preferences import pair_of
from jobs.data.rendering import Rendered
from jobs.data.templates import Templated
from jobs.tasks.base import Encoded, Scores, Task
from jobs.tasks.chat import needs_template
from jobs.tasks.comparing import Reference, answer_lengths, cut_both, mean, one_by_one, reference, render_since

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from jobs.training.data import Row
    from jobs.training.load import Device
    from jobs.training.objective import Setting


class Preference(Task):
    """Pairs of answers: both through the model in one batch, the better ones first. A row counts as one item."""

    shapes = (Shape.PREFERENCE,)
    sequences = 2
    follows_steps = True
    packs = True

    def check_data(self, params: Any, mapping: Mapping, has_chat_template: bool) -> list[str]:
        return [
            *super().check_data(params, mapping, has_chat_template),
            *needs_template(params, has_chat_template),
        ]

    def texts(
        self, row: dict[str, Any], mapping: Mapping, tokenizer: PreTrainedTokenizerBase, params: Any
    ) -> tuple[Rendered, ...]:
        pair = pair_of(row, mapping)
        return tuple(render_since(tokenizer, turns, pair.shared) for turns in (pair.chosen, pair.rejected))

    def cut(self, encoded: Encoded, max_length: int) -> Encoded:
        return cut_both(encoded, max_length)

    def prompt_messages(self, row: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
        return before_answer(pair_of(row, mapping).chosen)

    def items(self, row: Row) -> int:
        return 1

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:
        from jobs.training.data import collate

        return collate(one_by_one(rows), setting.pad_token_id)

    def loss(
        self, model: Any, batch: dict[str, torch.Tensor], setting: Setting, predictions: list[Any] | None = None
    ) -> torch.Tensor:
        from jobs.training.loss import answer_log_probs

        log_probs, lengths = answer_log_probs(model, batch), answer_lengths(batch["labels"])
        return self._told(self.weigh(log_probs, lengths, batch.get("reference"), setting.params), predictions)

    def packed_loss(
        self,
        losses: torch.Tensor,
        texts: torch.Tensor,
        rows: Sequence[Row],
        setting: Setting,
        predictions: list[Any] | None = None,
    ) -> torch.Tensor:
        log_probs = -losses.new_zeros(2 * len(rows)).index_add(0, texts, losses)
        lengths = texts.bincount(minlength=2 * len(rows))
        known = self.reference_of(rows, setting)
        if known is not None:
            known = known.to(losses.device)
        return self._told(self.weigh(log_probs, lengths, known, setting.params), predictions)

    def reference_of(self, rows: Sequence[Row], setting: Setting) -> torch.Tensor | None:
        """What the untrained model gave the better answers, then the worse ones: [2 x rows]; None where that does not
        count."""
        return None

    def weigh(
        self, log_probs: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None, params: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(the loss of each pair, the reward of each answer), from the log-probabilities of the better answers, then of
        the worse ones, and their lengths in tokens: [2 x rows] each."""
        raise NotImplementedError

    @staticmethod
    def _told(weighed: tuple[torch.Tensor, torch.Tensor], predictions: list[Any] | None) -> torch.Tensor:
        """The loss, summed; the rewards of each pair are appended to `predictions`."""
        losses, rewards = weighed
        if predictions is not None:
            chosen, rejected = rewards.detach().chunk(2)
            predictions += zip(chosen.tolist(), rejected.tolist(), strict=True)
        return losses.sum()

    def step_values(self, predictions: list[Any]) -> dict[str, float]:
        return {f"train_{name}": value for name, value in _measures(predictions).items()}

    def score(self, loss: float, predictions: list[Any], rows: Sequence[Row], setting: Setting) -> Scores:
        return Scores(loss, _measures(predictions))


class DPO(Preference):
    name = "dpo"
    label = "Preference tuning (DPO)"
    help = "Teaches which of two answers is the better one, without straying far from what the model says now."
    order = 30
    rate_scale: ClassVar[float] = 0.2  # with 0.1 of LoRA's usual rate the starter's answers hardly change in 30 steps

    unknown_before: ClassVar[tuple[str, ...]] = ("preference_accuracy",)  # it prefers nothing to itself

    weighing = frozenset({"beta", "loss", "sft_weight"})

    class Params(Templated):
        beta: float = Field(
            0.1,
            ge=0.001,
            le=5,
            title="Beta",
            description="How firmly the model is held to what it said before: lower lets it change more.",
        )
        loss: Literal["sigmoid", "ipo", "hinge"] = Field(
            "sigmoid",
            title="Loss",
            description="sigmoid is DPO's own. ipo stops pulling at a set distance, which spares small datasets; "
            "hinge ignores pairs that are far enough apart.",
        )
        sft_weight: float = Field(
            0.2,  # as Llama 3 was tuned (Dubey et al. 2024); in 30 steps the starter's answers change visibly
            ge=0,
            le=10,
            title="Weight of the better answers",
            description="How much learning the better answers themselves counts beside the comparison, as a chat would "
            "learn them. Plain DPO changes the wording slowly.",
            json_schema_extra={"zero": "plain DPO"},
        )

    def prepare(
        self,
        model: Any,
        train: Sequence[Row],
        validation: Sequence[Row],
        setting: Setting,
        *,
        device: Device,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Reference:
        from jobs.training.rows import Joined

        rows = Joined(train, validation)
        return reference(
            model,
            rows,
            lambda place: one_by_one([rows[place]]),
            2,
            setting.pad_token_id,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )

    def collate(self, rows: Sequence[Row], setting: Setting) -> dict[str, torch.Tensor]:

        batch = super().collate(rows, setting)
        batch["reference"] = self.reference_of(rows, setting)
        return batch

    def reference_of(self, rows: Sequence[Row], setting: Setting) -> torch.Tensor:
        import torch

        known: Reference = setting.prepared
        return torch.from_numpy(known.log_probs[known.places_of(rows)].T.flatten())

    def weigh(
        self, log_probs: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None, params: Params
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert reference is not None
        ratios = log_probs - reference
        apart = ratios / lengths if params.loss == "ipo" else ratios  # a mean a token, as IPO's authors compute it
        learnt = (-log_probs / lengths).chunk(2)[0]
        return pair_losses(apart, params.beta, params.loss) + params.sft_weight * learnt, params.beta * ratios


def pair_losses(ratios: torch.Tensor, beta: float, kind: str) -> torch.Tensor:
    """The loss of each pair, [pairs], from log(policy / reference) of the better answers, then of the worse ones.

    DPO's equation 7; IPO's equation 17, with means a token for ratios; the hinge of SLiC (Zhao et al. 2023).
    """
    import torch

    chosen, rejected = ratios.chunk(2)
    apart = chosen - rejected
    if kind == "ipo":
        return (apart - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.relu(1 - beta * apart)
    return -torch.nn.functional.logsigmoid(beta * apart)


class ORPO(Preference):
    name = "orpo"
    label = "Preference tuning (ORPO)"
    help = "Learns the better answers as a chat would, and to avoid the worse ones, in one go. Changes more than DPO."
    order = 31
    rate_scale: ClassVar[float] = 0.5

    weighing = frozenset({"strength"})

    class Params(Templated):
        strength: float = Field(
            0.1,
            ge=0.001,
            le=10,
            title="Weight of the comparison (lambda)",
            description="How much avoiding the worse answer counts beside learning the better one.",
        )

    def weigh(
        self, log_probs: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None, params: Params
    ) -> tuple[torch.Tensor, torch.Tensor]:
        means = log_probs / lengths
        chosen, rejected = means.chunk(2)
        return -chosen - params.strength * log_odds_ratios(chosen, rejected), params.strength * means


def log_odds_ratios(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """log sigmoid of log(odds of the better answer / odds of the worse), [pairs], from log-probabilities a token.

    ORPO's equations 4 and 7. The likelihood that stands beside it in the loss is that of the better answer, a mean a
    token, as in the paper's equation 6; TRL and the authors' code count the prompt's tokens in, too.
    """
    import torch

    apart = (chosen - rejected) - (_log_1m_exp(chosen) - _log_1m_exp(rejected))
    return torch.nn.functional.logsigmoid(apart)


def _log_1m_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, by whichever form keeps its digits (Maechler 2012). A certain answer has x = 0."""
    import torch

    x = x.clamp(max=-1e-7)
    near = x > -0.6931471805599453
    # `where` computes the gradient of both forms: each gets a harmless number where the other one counts.
    safe_near, safe_far = torch.where(near, x, -0.5), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(safe_near)), torch.log1p(-torch.exp(safe_far)))


def _measures(rewards: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of pairs (reward of the better answer, of the worse): how often they stand the right way round, how far apart."""
    chosen, rejected = mean([pair[0] for pair in rewards]), mean([pair[1] for pair in rewards])
    return {
        "preference_accuracy": mean([float(better > worse) for better, worse in rewards]),
        "reward_margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }

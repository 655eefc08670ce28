"""SD-MAE: a masked autoencoder that also distils itself (arXiv 2203.16983).

What the decoder makes of the visible patches teaches the encoder's own tokens of them.
The published loss lets gradients into the teacher, whose output then collapses onto one
prototype within a few steps; it is here as ``reference``, and the teacher by moving
average as the default. The decoupled form without a teacher, which weighs the error of
the visible patches against that of the hidden ones, is ``none``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from histomae.models.mae import MaskedAutoencoder, masked_loss
from histomae.models.patches import gather_tokens, random_mask

if TYPE_CHECKING:
    from histomae.models.vit import EncoderSpec

#: Temperatures of teacher and student, as published; the sharper one teaches.
TEACHER_T, STUDENT_T = 0.04, 0.1
#: Widths of a head: two hidden layers, and what the prototypes are compared with.
HIDDEN, BOTTLENECK = 2048, 256
#: Momentum of the centre, and of the teacher at the first and at the last step.
CENTRE_MOMENTUM, FIRST_MOMENTUM, LAST_MOMENTUM = 0.9, 0.99, 0.996
#: Below this share of the largest entropy there is, all pictures have one answer.
COLLAPSED = 0.1


@dataclass(frozen=True, eq=False)
class SdMaeOutput:
    """What one forward pass gives."""

    loss: Tensor
    """() float32."""
    logged: dict[str, Tensor]
    """() each: the parts of the loss, and how sure the teacher is."""
    means: dict[str, Tensor]
    """(K,) each, means over the pictures: what :meth:`SelfDistilled.update` takes."""


class Head(nn.Module):
    """Tokens (…, D) to their likeness to K prototypes, a cosine each (…, K)."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(dim, HIDDEN), nn.GELU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.GELU()),
            nn.Linear(HIDDEN, BOTTLENECK),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, BOTTLENECK))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compare tokens with the prototypes."""
        points = functional.normalize(self.layers(tokens), dim=-1)
        return functional.linear(points, functional.normalize(self.prototypes, dim=-1))


class SelfDistilled(MaskedAutoencoder):
    """A masked autoencoder with heads on the visible tokens of encoder and decoder.

    Parameters
    ----------
    encoder_spec, decoder_dim, decoder_depth, decoder_heads, norm_pix, generator
        As for :class:`MaskedAutoencoder`, whose weights are the same from one
        generator.
    teacher
        ``ema``: one head for both sides, the teacher's a moving average of it without
        gradients, its logits centred. ``reference``: two heads, gradients into both,
        the centre from probabilities, as published. ``none``: no head.
    prototypes
        K, the answers that a head chooses among.
    distill_weight
        λ, the share of the distillation in the loss; 0 leaves the heads out.
    visible_weight
        α, without teacher: the share of the visible patches' error.
    """

    centre: Tensor
    usage: Tensor

    def __init__(
        self,
        encoder_spec: EncoderSpec,
        *,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        norm_pix: bool = True,
        teacher: str = "ema",
        prototypes: int = 4096,
        distill_weight: float = 0.2,
        visible_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            encoder_spec,
            decoder_dim=decoder_dim,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
            norm_pix=norm_pix,
            generator=generator,
        )
        self.teacher, self.visible_weight = teacher, visible_weight
        self.distill_weight = 0.0 if teacher == "none" else distill_weight
        if not self.distill_weight:
            return
        width = encoder_spec.embed_dim
        if teacher == "ema":
            self.adapt = nn.Linear(width, decoder_dim)
            self.student_head = Head(decoder_dim, prototypes)
        else:
            self.student_head = Head(width, prototypes)
        self.teacher_head = Head(decoder_dim, prototypes)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("usage", torch.full((prototypes,), 1 / prototypes))
        self._begin(generator)

    def _begin(self, generator: torch.Generator | None) -> None:
        for name, weight in self.named_parameters():
            if not name.startswith(("encoder.", "decoder.")):
                if weight.ndim == 1:
                    nn.init.zeros_(weight)
                else:
                    nn.init.trunc_normal_(weight, std=0.02, generator=generator)
        if self.teacher == "ema":
            self.teacher_head = copy.deepcopy(self.student_head)
            self.teacher_head.requires_grad_(False)

    def distil(
        self, images: Tensor, *, mask_ratio: float, noise: Tensor
    ) -> SdMaeOutput:
        """Hide, encode, decode; compare pixels, and the two views of visible patches.

        The loss splits over the batch, for the centre stands still within a step.

        Parameters
        ----------
        images, mask_ratio, noise
            As for :meth:`MaskedAutoencoder.forward`.
        """
        masking = random_mask(noise, mask_ratio)
        latent = self.forward_encoder(images, masking.ids_keep)
        features = self.decoder.features(latent, masking.ids_restore)
        prediction, target = self.decoder.head(features[:, 1:]), self.target(images)
        hidden = masked_loss(prediction, target, mask=masking.mask)
        if self.teacher == "none":
            visible = masked_loss(prediction, target, mask=~masking.mask)
            loss = (1 - self.visible_weight) * hidden + self.visible_weight * visible
            return SdMaeOutput(loss, {"hidden": hidden, "visible": visible}, {})
        if not self.distill_weight:
            return SdMaeOutput(hidden, {"hidden": hidden}, {})
        decoded = gather_tokens(features[:, 1:], masking.ids_keep)
        student, teacher = self._logits(latent[:, 1:], decoded)
        return self._compare(hidden, student, teacher)

    def _logits(self, encoded: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) of student and teacher, means over the tokens."""
        if self.teacher == "reference":
            student, teacher = self.student_head(encoded), self.teacher_head(decoded)
        else:
            student = self.student_head(self.adapt(encoded))
            with torch.no_grad():
                teacher = self.teacher_head(decoded)
        return student.float().mean(1), teacher.float().mean(1)

    def _compare(self, hidden: Tensor, student: Tensor, teacher: Tensor) -> SdMaeOutput:
        taught = functional.softmax((teacher - self.centre) / TEACHER_T, dim=-1)
        said = functional.log_softmax(student / STUDENT_T, dim=-1)
        distillation = -(taught * said).sum(-1).mean()
        share = self.distill_weight
        answers = functional.one_hot(taught.argmax(-1), taught.shape[-1])
        return SdMaeOutput(
            (1 - share) * hidden + share * distillation,
            {
                "hidden": hidden,
                "distillation": distillation,
                "teacher_entropy": entropy(taught.detach()).mean(),
            },
            {
                "logits": teacher.detach().mean(0),
                "taught": taught.detach().mean(0),
                "answers": answers.float().mean(0),
            },
        )

    @torch.no_grad()
    def update(self, done: float, means: dict[str, Tensor]) -> dict[str, float]:
        """Move the centre and the teacher after a step.

        Parameters
        ----------
        done
            Share of the training that is done, 0 to 1.
        means
            Those of the whole batch.

        Returns
        -------
        The entropy of the teacher's answers, averaged over the last ten batches or so,
        as a share of the largest there is; and how many prototypes answered.
        """
        if not means:
            return {}
        towards = means["logits" if self.teacher == "ema" else "taught"]
        self.centre.lerp_(towards, 1 - CENTRE_MOMENTUM)
        self.usage.lerp_(means["taught"], 1 - CENTRE_MOMENTUM)
        if self.teacher == "ema":
            keep = FIRST_MOMENTUM + done * (LAST_MOMENTUM - FIRST_MOMENTUM)
            for mine, learned in zip(
                self.teacher_head.parameters(),
                self.student_head.parameters(),
                strict=True,
            ):
                mine.lerp_(learned, 1 - keep)
        largest = math.log(len(self.usage))
        return {
            "entropy_of_mean": float(entropy(self.usage)) / largest,
            "prototypes_used": int((means["answers"] > 0).sum()),
        }


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of distributions (…, K), in nats: (…)."""
    return torch.special.entr(probabilities).sum(-1)


def concern(logged: dict[str, float]) -> str:
    """Say what is wrong where the teacher gives every picture the same answer."""
    share = logged.get("entropy_of_mean", 1.0)
    if share >= COLLAPSED:
        return ""
    return (
        f"The teacher has collapsed: it gives nearly every picture the same answer "
        f"(entropy of the mean {share:.0%} of the largest). The distillation teaches "
        "nothing any more. Try distill_teacher ema, a smaller base_lr or a smaller "
        "distill_weight."
    )

"""What some methods do after each step, and the part of its state that a checkpoint keeps."""

import torch

PRUNE_FROM, PRUNE_UNTIL = 0.1, 0.7  # shares of the run between which AdaLoRA drops ranks
PRUNE_EVERY = 5  # steps


class AdaLoraSchedule:
    """AdaLoRA's rank budget (https://arxiv.org/abs/2303.10512, section 3.3) by the share of the run completed.

    PEFT's own schedule needs the number of steps at the start, which a budget in seconds can't give.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model.base_model.model
        self.config = model.peft_config["default"]
        self.ranks = model.base_model.rankallocator

    def penalty(self) -> torch.Tensor:
        """The regularization that keeps the two outer factors orthogonal (equation 4), to add to the loss."""
        parts = []
        for name, p in self.model.named_parameters():
            if ("lora_A" in name or "lora_B" in name) and p.requires_grad:
                product = p @ p.T if "lora_A" in name else p.T @ p
                parts.append((product - torch.eye(len(product), device=p.device)).norm())
        return self.config.orth_reg_weight * torch.stack(parts).mean()

    def stepped(self, step: int, progress: float) -> None:
        """Update the ranks after step number `step`, before its gradients are cleared; `progress` is from 0 to 1."""
        if progress < PRUNE_UNTIL:
            self.ranks.update_ipt(self.model)
            if progress > PRUNE_FROM and step % PRUNE_EVERY == 0:
                left = (1 - (progress - PRUNE_FROM) / (PRUNE_UNTIL - PRUNE_FROM)) ** 3
                self._keep(round(self.ranks.target_bgt + left * (self.ranks.init_bgt - self.ranks.target_bgt)))
        elif self._kept() > self.ranks.target_bgt:
            if not self.ranks.exp_avg_ipt:
                self.ranks.update_ipt(self.model)
            self._keep(self.ranks.target_bgt)
        elif self.config.rank_pattern:  # there is none if rank 1 leaves nothing to drop
            self.ranks.mask_using_rank_pattern(self.model, self.config.rank_pattern)

    def _kept(self) -> int:
        pattern = self.config.rank_pattern
        return self.ranks.init_bgt if pattern is None else sum(map(sum, pattern.values()))

    def _keep(self, budget: int) -> None:
        if budget < self.ranks.init_bgt:
            self.config.rank_pattern = self.ranks.mask_to_budget(self.model, budget)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: importance, its uncertainty, and the ranks kept."""
        means = {f"mean/{n}": t for n, t in self.ranks.exp_avg_ipt.items()}
        spread = {f"spread/{n}": t for n, t in self.ranks.exp_avg_unc.items()}
        kept = {f"kept/{n}": torch.tensor(k) for n, k in (self.config.rank_pattern or {}).items()}
        return means | spread | kept

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint's state."""

        def under(kind: str) -> dict:
            return {k.removeprefix(kind): v for k, v in state.items() if k.startswith(kind)}

        self.ranks.exp_avg_ipt, self.ranks.exp_avg_unc = under("mean/"), under("spread/")
        self.ranks.ipt = {n: torch.zeros_like(t) for n, t in self.ranks.exp_avg_ipt.items()}
        self.config.rank_pattern = {n: k.tolist() for n, k in under("kept/").items()} or None


SCHEDULES = {s.__name__: s for s in (AdaLoraSchedule,)}

"""What some methods do beside each step, with the state that a checkpoint must hold."""

import torch

WARMED = 0.1  # of the run: before it AdaLoRA keeps every rank
SETTLED = 0.7  # of the run: from here on it drops none
EVERY = 5  # steps between two countings


class AdaLoraSchedule:
    """AdaLoRA's budget (https://arxiv.org/abs/2303.10512, section 3.3) by the share of the run that is done.

    PEFT's goes by a number of steps that must be known at the start, which a budget in seconds does not have.
    """

    def __init__(self, model):
        self.model = model.base_model.model
        self.config = model.peft_config["default"]
        self.ranks = model.base_model.rankallocator

    def penalty(self) -> torch.Tensor:
        """How far the two outer factors are from orthogonal (equation 4)."""
        parts = []
        for name, p in self.model.named_parameters():
            if ("lora_A" in name or "lora_B" in name) and p.requires_grad:
                product = p @ p.T if "lora_A" in name else p.T @ p
                parts.append((product - torch.eye(len(product), device=p.device)).norm())
        return self.config.orth_reg_weight * torch.stack(parts).mean()

    def stepped(self, step: int, progress: float) -> None:
        """After step number `step`, while its gradients are there; `progress` of the run is done."""
        if progress < SETTLED:
            self.ranks.update_ipt(self.model)
            if progress > WARMED and step % EVERY == 0:
                left = (1 - (progress - WARMED) / (SETTLED - WARMED)) ** 3
                self._keep(round(self.ranks.target_bgt + left * (self.ranks.init_bgt - self.ranks.target_bgt)))
        elif self._kept() > self.ranks.target_bgt:
            if not self.ranks.exp_avg_ipt:
                self.ranks.update_ipt(self.model)
            self._keep(self.ranks.target_bgt)
        else:
            self.ranks.mask_using_rank_pattern(self.model, self.config.rank_pattern)

    def _kept(self) -> int:
        pattern = self.config.rank_pattern
        return self.ranks.init_bgt if pattern is None else sum(map(sum, pattern.values()))

    def _keep(self, budget: int) -> None:
        if budget < self.ranks.init_bgt:
            self.config.rank_pattern = self.ranks.mask_to_budget(self.model, budget)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold."""
        means = {f"mean/{n}": t for n, t in self.ranks.exp_avg_ipt.items()}
        spread = {f"spread/{n}": t for n, t in self.ranks.exp_avg_unc.items()}
        kept = {f"kept/{n}": torch.tensor(k) for n, k in (self.config.rank_pattern or {}).items()}
        return means | spread | kept

    def load(self, state: dict[str, torch.Tensor]) -> None:
        def under(kind: str) -> dict:
            return {k.removeprefix(kind): v for k, v in state.items() if k.startswith(kind)}

        self.ranks.exp_avg_ipt, self.ranks.exp_avg_unc = under("mean/"), under("spread/")
        self.ranks.ipt = {n: torch.zeros_like(t) for n, t in self.ranks.exp_avg_ipt.items()}
        self.config.rank_pattern = {n: k.tolist() for n, k in under("kept/").items()} or None


SCHEDULES = {s.__name__: s for s in (AdaLoraSchedule,)}

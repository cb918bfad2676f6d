"""Training steps whose random numbers do not depend on what ran before them."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data import TrainingLoader
from ..seeding import FOR_STEP, seed_everything

logger = logging.getLogger(__name__)


class SeedSteps(HookBase):
    """
    Seeds every step from (seed, process, iteration), and lets the loader begin at the iteration
    with which training begins. So a resumed training goes on exactly as it would have without
    interruption, and checkpoints need no state of random number generators.
    """

    def __init__(self, seed):
        """
        Args:
            seed (int): ``SEED``. If negative a random one, which checkpoints keep.
        """
        self._is_given = seed >= 0
        self.seed = seed if self._is_given else comm.shared_random_seed()

    def before_train(self):
        loader = self.trainer.data_loader
        if isinstance(loader, TrainingLoader):
            loader.begin_at(self.trainer.start_iter, self.seed)
        elif self.trainer.start_iter > 0:
            logger.warning(
                f"{type(loader).__name__} cannot begin at iteration {self.trainer.start_iter}: a "
                "resumed training sees its first images again"
            )

    def before_step(self):
        seed_everything(FOR_STEP, self.seed, comm.get_rank(), self.trainer.iter)

    def state_dict(self):
        return {"seed": self.seed}

    def load_state_dict(self, state_dict):
        if not self._is_given:
            self.seed = state_dict["seed"]
        elif self.seed != state_dict["seed"]:
            logger.warning(
                f"SEED is {self.seed}, but the training began with {state_dict['seed']}: it goes "
                "on with other images and random numbers than without interruption"
            )

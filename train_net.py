#!/usr/bin/env python
"""
Train or evaluate ContrastMask:

    python train_net.py --num-gpus 8 --config-file configs/...yaml
    python train_net.py --eval-only MODEL.WEIGHTS model_final.pth
    python train_net.py --config-file configs/...yaml --eval-only MODEL.WEIGHTS official.pth

A checkpoint that was written in training holds its config; others need --config-file.
"""

import sys

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from contrastmask.checkpoint import ContrastMaskCheckpointer
from contrastmask.data import check_all, check_classes
from contrastmask.engine import Trainer, launch, setup
from contrastmask.engine.programs import program, user_errors


def main(args):
    with user_errors():  # in each of several processes
        return run(args)


def run(args):
    cfg = setup(args)
    if args.eval_only:
        check_classes(cfg, cfg.DATASETS.TEST)
        model = Trainer.build_model(cfg)
        checkpointer = ContrastMaskCheckpointer(model, cfg.OUTPUT_DIR, require_all=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    check_all(cfg)
    for name in cfg.DATASETS.TEST:  # complain before training, not after it
        Trainer.build_evaluator(cfg, name)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@program
def start(argv=None):
    parser = default_argument_parser()
    args = parser.parse_args(argv)
    if not (args.config_file or args.eval_only):
        parser.error("training needs --config-file")
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(start())

#!/usr/bin/env python
"""
Train or evaluate ContrastMask:

    python train_net.py --num-gpus 8 --config-file configs/...yaml
    python train_net.py --config-file configs/...yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from contrastmask.checkpoint import ContrastMaskCheckpointer
from contrastmask.data import check_num_classes, check_supervision
from contrastmask.engine import Trainer, launch, setup


def main(args):
    cfg = setup(args)
    if args.eval_only:
        check_num_classes(cfg, cfg.DATASETS.TEST)
        model = Trainer.build_model(cfg)
        checkpointer = ContrastMaskCheckpointer(model, cfg.OUTPUT_DIR, require_all=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    check_num_classes(cfg)
    check_supervision(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )

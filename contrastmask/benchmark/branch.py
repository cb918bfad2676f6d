"""Part: the contrastive branch against the convolutions of its encoder."""

from torch import nn

from ..modeling.self_similarity import enhance_by_self_similarity
from .heads import build_contrastive_head
from .made_up_rois import make_features, make_rois
from .timing import compare, ratio


def run(settings):
    """
    Forward and backward. "branch" has an enhanced map for every RoI; "branch, 1/8 enhanced" for one
    in eight, nearer to training, where only ground-truth boxes of base classes get one. The other
    rows are pieces of the branch.

    Args:
        settings (Settings):

    Returns:
        list[dict]: rows; "ratio" is relative to the bare convolutions, without ReLU.
    """
    rows = []
    for dtype in settings.dtypes:
        for num in settings.roi_counts((64,)):
            functions = _functions(settings, num, dtype)
            timings = compare(functions, settings.num_repeats(5), settings.device)
            for name, timing in timings.items():
                relative = ratio(timing, timings["bare convolutions"])
                row = {"dtype": dtype, "RoIs": num, "what": name, **timing.columns()}
                rows.append({**row, "ratio": relative})
    return rows


def _functions(settings, num, dtype):
    head = build_contrastive_head(settings)
    bare = _bare_convolutions(head.encoder)
    x = make_features(num, settings.channels, settings.side, settings.device)
    rois = make_rois(num, settings.side, settings.device)
    size = settings.side // 2

    def run_bare():
        with settings.autocast(dtype):
            bare(x).float().sum().backward()

    def run_encoder():
        with settings.autocast(dtype):
            head(x).float().sum().backward()

    def branch(num_enhanced):
        with settings.autocast(dtype):
            encoded = head(x)
            loss = sum(head.contrast(encoded, *rois)[0])
            loss = loss + enhance_by_self_similarity(encoded[:num_enhanced], size).mean()
            loss.backward()

    encoded = head(x).detach().requires_grad_()

    def run_enhancement():
        with settings.autocast(dtype):
            enhance_by_self_similarity(encoded, size).mean().backward()

    def run_contrast():
        with settings.autocast(dtype):
            sum(head.contrast(encoded, *rois)[0]).backward()

    return {
        "bare convolutions": run_bare,
        "branch": lambda: branch(num),
        "branch, 1/8 enhanced": lambda: branch(max(num // 8, 1)),
        "encoder": run_encoder,
        "enhancement": run_enhancement,
        "pixel sets, projector, loss": run_contrast,
    }


def _bare_convolutions(encoder):
    convs = nn.Sequential()
    for conv in encoder:
        options = {"padding": conv.padding, "device": conv.weight.device}
        convs.append(nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **options))
    return convs

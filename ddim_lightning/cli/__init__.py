"""The command line has these verbs."""

VERBS = {
    "edit": "invert one video, reconstruct it, and rebuild it under each prompt",
    "predict": "invert, reconstruct and edit all clips of a data module (YAML files)",
    "fit": "train (YAML files)",
    "validate": "validate (YAML files)",
    "demo": "edit clips with known answers by the bundled model",
    "export": "write the network as files that PyTorch alone can run",
    "check": "say what would be loaded of a model, what it takes and needs, without loading its weights",
    "report": "show a run in a browser, or compare two: write its page from its folder",
    "metrics": "measure videos against others: PSNR, SSIM, LPIPS, CLIP, motion, on both sides of masks",
    "benchmark": "run a benchmark; without a name they are listed",
    "env": "print what is installed here, for bug reports; --json for programs",
}

"""The demo's job end to end, cut short."""

import json
from pathlib import Path

import pytest

from d2_plugins.cli.demo import run_demo


@pytest.mark.slow
def test_demo_trains_and_writes_all_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    output = tmp_path / "demo"
    opts = ["SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "2", "OUTPUT_DIR", str(output)]
    box_ap = run_demo(opts)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"demo: box AP {box_ap:.1f} in ")
    results = json.loads((output / "results.json").read_text())
    assert results["bbox"]["AP"] == box_ap
    for name in ("metrics.json", "loss_curve.png", "ap_curve.png", "predictions.png"):
        assert (output / name).stat().st_size > 0
    report = (output / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "data:image/" in report

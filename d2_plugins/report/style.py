"""The look of a report: one column on a phone, figures side by side on a desktop."""

__all__ = ["STYLE"]

STYLE = """\
:root { color-scheme: light; --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --pale: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--pale); color: var(--ink); line-height: 1.5;
  overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 28px; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
header p, .note, figcaption { color: var(--soft); font-size: .9rem; margin: 6px 0 12px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; margin: 16px 0;
  padding: 18px 18px 10px; }
.tiles { display: grid; gap: 10px; margin-bottom: 10px;
  grid-template-columns: repeat(auto-fit, minmax(135px, 1fr)); }
.tiles div { background: var(--pale); border-radius: 8px; padding: 10px 12px; }
.tiles b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.facts b { font-size: .95rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin-bottom: 10px; }
th, td { text-align: left; vertical-align: top; padding: 6px 10px;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
tbody th { font-weight: 500; }
.numbers { overflow-wrap: normal; }
.numbers td, .numbers th:not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; }
.text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .82rem; }
.text th, .text td { min-width: 110px; }
.bars { list-style: none; margin: 0 0 10px; padding: 0; font-size: .9rem; display: grid;
  gap: 4px 24px; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.bars li { display: grid; grid-template-columns: 1fr auto; padding-bottom: 4px; }
.bars b { font-variant-numeric: tabular-nums; font-weight: 600; }
.bars i { grid-column: 1 / -1; justify-self: start; height: 5px; border-radius: 3px;
  background: #0072b2; }
figure { margin: 0 0 12px; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.grid, figure div { display: grid; gap: 8px 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure div { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.photos img { max-height: 380px; object-fit: contain; background: var(--pale); }
"""

/** What an artifact was made from, as a graph: parents to the left of what was made from them. */

import { html } from "/console/vendor/preact-htm.js";

const WIDTH = 146;
const HEIGHT = 52;
const GAP = [40, 18];

/** Columns by the longest way to the artifact itself, which is the last. */
function columns(lineage) {
  const known = new Map(lineage.map((each) => [each.digest, each]));
  const depth = new Map();
  const visit = (digest, far) => {
    if ((depth.get(digest) ?? -1) >= far) return;
    depth.set(digest, far);
    for (const parent of Object.values(known.get(digest).parents)) if (known.has(parent)) visit(parent, far + 1);
  };
  visit(lineage[0].digest, 0);
  const most = Math.max(...depth.values());
  const rows = Array.from({ length: most + 1 }, () => []);
  for (const [digest, far] of depth) rows[most - far].push(known.get(digest));
  return rows;
}

export function Lineage({ lineage, onPick }) {
  const rows = columns(lineage);
  const place = new Map();
  rows.forEach((column, x) => column.forEach((each, y) => place.set(each.digest, [x * (WIDTH + GAP[0]), y * (HEIGHT + GAP[1])])));
  const width = rows.length * (WIDTH + GAP[0]) - GAP[0];
  const height = Math.max(...rows.map((column) => column.length)) * (HEIGHT + GAP[1]) - GAP[1];
  const edges = lineage.flatMap((each) => Object.entries(each.parents).filter(([, parent]) => place.has(parent))
    .map(([role, parent]) => ({ role, from: place.get(parent), to: place.get(each.digest), key: `${each.digest} ${role}` })));
  return html`<div class="scroll lineage" tabindex="0" role="group" aria-label="Lineage"><div style=${{ width: `${width + 4}px`, height: `${height + 4}px` }}>
    <svg width=${width + 4} height=${height + 4} aria-hidden="true">${edges.map(({ role, from, to, key }) => {
      const [x1, y1, x2, y2] = [from[0] + WIDTH, from[1] + HEIGHT / 2, to[0], to[1] + HEIGHT / 2];
      const middle = (x1 + x2) / 2;
      return html`<g key=${key}><path d=${`M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`} /><title>${role}</title></g>`;
    })}</svg>
    ${[...place].map(([digest, [left, top]], i) => {
      const each = lineage.find((one) => one.digest === digest);
      const own = digest === lineage[0].digest;
      return html`<button key=${digest} class=${own ? "node own" : "node"} style=${{ left: `${left}px`, top: `${top}px`, width: `${WIDTH}px`, height: `${HEIGHT}px` }}
        disabled=${!each.kind || own} onClick=${() => onPick(digest)}><strong>${each.kind ?? "gone"}</strong><code>${digest.slice(0, 12)}</code></button>`;
    })}</div></div>`;
}

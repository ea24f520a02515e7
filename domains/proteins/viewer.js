(() => {
  "use strict";
  const root = document.currentScript.parentElement;
  const pick = root.querySelector('[data-pick="chain"]');
  const shades = root.querySelector('[data-pick="colour"]');
  const STATES = {H: [214, 69, 60], E: [47, 111, 214], C: [140, 146, 156]};
  const WIDTH = {H: 1.9, E: 1.6, C: 0.8};
  const STEPS = 6;
  let curve = [];

  const mix = (a, b, t) => a.map((v, k) => v + (b[k] - v) * t);
  const rgb = (c, shade) => `rgb(${c.map(v => Math.max(0, Math.min(255, v * shade | 0))).join()})`;

  function colour(scene, i) {
    const n = scene.x.length;
    if (shades.value === "place") {
      const t = n > 1 ? i / (n - 1) : 0;
      return t < 0.5 ? mix([40, 90, 220], [60, 180, 90], 2 * t)
        : mix([60, 180, 90], [225, 70, 50], 2 * t - 1);
    }
    if (shades.value === "confidence" && scene.confidence) {
      const top = Math.max(1, ...scene.confidence);
      return mix([235, 120, 40], [40, 90, 220], scene.confidence[i] / top);
    }
    if (shades.value === "given" && scene.given)
      return scene.given[i] ? [226, 150, 20] : STATES.C;
    return STATES[scene.state[i]] || STATES.C;
  }

  // Catmull-Rom through the CA atoms; a strand's zigzag is smoothed first.
  function bend(scene) {
    curve = [];
    for (const rows of scene.pieces) {
      const x = rows.map((i, k) => {
        const p = scene.x[i];
        if (scene.state[i] !== "E" || k === 0 || k === rows.length - 1) return p;
        const a = scene.x[rows[k - 1]], b = scene.x[rows[k + 1]];
        return p.map((v, d) => (a[d] + 2 * v + b[d]) / 4);
      });
      const at = k => x[Math.max(0, Math.min(x.length - 1, k))];
      let last = null;
      for (let k = 0; k < x.length - 1; k++) {
        for (let s = k ? 1 : 0; s <= STEPS; s++) {
          const t = s / STEPS, [p, q, r, e] = [at(k - 1), at(k), at(k + 1), at(k + 2)];
          const point = q.map((v, d) => 0.5 * (2 * v + (r[d] - p[d]) * t
            + (2 * p[d] - 5 * v + 4 * r[d] - e[d]) * t * t
            + (3 * v - p[d] - 3 * r[d] + e[d]) * t * t * t));
          if (last) curve.push([last, point, rows[t < 0.5 ? k : k + 1]]);
          last = point;
        }
      }
    }
  }

  function paint(ctx, scene, see, reach) {
    const things = curve.map(([a, b, i]) => {
      const p = see(a), q = see(b);
      return {z: (p.z + q.z) / 2, p, q, i};
    }).sort((a, b) => a.z - b.z);
    ctx.lineCap = "round";
    things.forEach(({z, p, q, i}) => {
      // Far things are paler, so that depth can be seen when nothing moves.
      ctx.globalAlpha = 0.35 + 0.65 * Math.min(1, Math.max(0, (z + reach) / (1.5 * reach)));
      const width = (WIDTH[scene.state[i]] || WIDTH.C) * p.size;
      for (const [thick, shade] of [[width, 0.62], [width * 0.72, 0.95], [width * 0.28, 1.25]]) {
        ctx.strokeStyle = rgb(colour(scene, i), shade);
        ctx.lineWidth = thick;
        ctx.beginPath();
        ctx.moveTo(p.x, p.y);
        ctx.lineTo(q.x, q.y);
        ctx.stroke();
      }
    });
  }

  const draw = sciflowStage(root, {pick, tilt: [0.35, -0.3], least: 4, margin: 1.5, paint,
    enter: bend});
  shades.addEventListener("change", draw);
})();

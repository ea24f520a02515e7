(() => {
  "use strict";
  const root = document.currentScript.parentElement;
  const COLOURS = {H: [225, 225, 225], C: [95, 98, 104], N: [58, 98, 235], O: [226, 48, 40],
    F: [96, 200, 90], P: [240, 140, 20], S: [225, 195, 40], Cl: [50, 190, 60], Br: [160, 60, 40],
    I: [145, 30, 180], B: [250, 170, 160], Si: [190, 160, 120]};
  const RADII = {H: 0.24, C: 0.37, N: 0.36, O: 0.35, F: 0.33};
  const colour = s => COLOURS[s] || [190, 80, 170];
  const radius = s => RADII[s] || 0.44;
  const rgb = (c, shade) => `rgb(${c.map(v => Math.max(0, Math.min(255, v * shade | 0))).join()})`;

  function paint(ctx, scene, see, reach) {
    const at = scene.x.map(see);
    // Far things are paler, so that depth can be seen when nothing moves.
    const fog = z => 0.45 + 0.55 * Math.min(1, Math.max(0, (z + reach) / (1.4 * reach)));
    const things = [];
    scene.bonds.forEach(([i, j, code]) => {
      const a = at[i], b = at[j], m = {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2,
        z: (a.z + b.z) / 2, size: (a.size + b.size) / 2};
      things.push({z: (a.z + m.z) / 2 - 0.01,
        paint: () => stick(ctx, a, m, b, code, scene.symbols[i])});
      things.push({z: (b.z + m.z) / 2 - 0.01,
        paint: () => stick(ctx, b, m, a, code, scene.symbols[j])});
    });
    at.forEach((p, i) => things.push({z: p.z, paint: () => ball(ctx, p, scene.symbols[i])}));
    things.sort((a, b) => a.z - b.z).forEach(thing => {
      ctx.globalAlpha = fog(thing.z);
      thing.paint();
    });
  }
  function ball(ctx, p, symbol) {
    const r = radius(symbol) * p.size, c = colour(symbol);
    const g = ctx.createRadialGradient(p.x - 0.35 * r, p.y - 0.4 * r, 0.1 * r, p.x, p.y, r);
    g.addColorStop(0, rgb(c.map(v => v + (255 - v) * 0.65), 1));
    g.addColorStop(0.55, rgb(c, 1));
    g.addColorStop(1, rgb(c, 0.6));
    ctx.fillStyle = g;
    ctx.beginPath();
    ctx.arc(p.x, p.y, r, 0, 2 * Math.PI);
    ctx.fill();
  }
  function stick(ctx, from, to, other, code, symbol) {
    const lines = code === 2 || code === 4 ? 2 : code === 3 ? 3 : 1;
    const dx = other.x - from.x, dy = other.y - from.y, length = Math.hypot(dx, dy) || 1;
    // The side on which the second line of a double bond lies must not depend on the half drawn.
    const side = dx > 0 || (dx === 0 && dy > 0) ? 1 : -1;
    ctx.lineCap = "round";
    for (let k = 0; k < lines; k++) {
      const shift = (k - (lines - 1) / 2) * 0.2 * from.size * side;
      const ox = -dy / length * shift, oy = dx / length * shift;
      const width = (lines === 1 ? 0.19 : 0.12) * from.size;
      ctx.setLineDash(code === 4 && k === 1 ? [width * 0.9, width * 1.7] : []);
      for (const [thick, shade] of [[width, 0.68], [width * 0.45, 1.08]]) {
        ctx.strokeStyle = rgb(colour(symbol), shade);
        ctx.lineWidth = thick;
        ctx.beginPath();
        ctx.moveTo(from.x + ox, from.y + oy);
        ctx.lineTo(to.x + ox, to.y + oy);
        ctx.stroke();
      }
    }
    ctx.setLineDash([]);
  }


  sciflowStage(root, {pick: root.querySelector("select"), tilt: [0.45, -0.35], least: 1.5,
    margin: 0.6, paint});
})();

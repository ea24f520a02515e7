(() => {
  "use strict";
  const root = document.currentScript.parentElement;
  const scenes = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const canvas = root.querySelector("canvas"), ctx = canvas.getContext("2d");
  const select = root.querySelector("select"), note = root.querySelector(".viewer-note");
  const COLOURS = {H: [225, 225, 225], C: [95, 98, 104], N: [58, 98, 235], O: [226, 48, 40],
    F: [96, 200, 90], P: [240, 140, 20], S: [225, 195, 40], Cl: [50, 190, 60], Br: [160, 60, 40],
    I: [145, 30, 180], B: [250, 170, 160], Si: [190, 160, 120]};
  const RADII = {H: 0.24, C: 0.37, N: 0.36, O: 0.35, F: 0.33};
  const colour = s => COLOURS[s] || [190, 80, 170];
  const radius = s => RADII[s] || 0.44;
  const TILT = multiply(turn(0, 0.45), turn(1, -0.35));
  let scene = scenes[0], rotation = TILT, zoom = 1;

  function turn(axis, angle) {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === 0 ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
  }
  function multiply(a, b) {
    return a.map(r => [0, 1, 2].map(j => r[0] * b[0][j] + r[1] * b[1][j] + r[2] * b[2][j]));
  }
  const rgb = (c, shade) => `rgb(${c.map(v => Math.max(0, Math.min(255, v * shade | 0))).join()})`;

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.clientWidth, h = canvas.clientHeight;
    if (!w || !h) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, w, h);
    const reach = Math.max(1.5, ...scene.x.map(p => Math.hypot(...p))) + 0.6;
    const scale = zoom * Math.min(w, h) / 2 / reach, eye = 5 * reach;
    const at = scene.x.map(p => {
      const q = rotation.map(r => r[0] * p[0] + r[1] * p[1] + r[2] * p[2]);
      const near = eye / (eye - q[2]);
      return {x: w / 2 + q[0] * scale * near, y: h / 2 - q[1] * scale * near, z: q[2],
        size: scale * near};
    });
    // Far things are paler, so that depth can be seen when nothing moves.
    const fog = z => 0.45 + 0.55 * Math.min(1, Math.max(0, (z + reach) / (1.4 * reach)));
    const things = [];
    scene.bonds.forEach(([i, j, code]) => {
      const a = at[i], b = at[j], m = {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2,
        z: (a.z + b.z) / 2, size: (a.size + b.size) / 2};
      things.push({z: (a.z + m.z) / 2 - 0.01, paint: () => stick(a, m, b, code, scene.symbols[i])});
      things.push({z: (b.z + m.z) / 2 - 0.01, paint: () => stick(b, m, a, code, scene.symbols[j])});
    });
    at.forEach((p, i) => things.push({z: p.z, paint: () => ball(p, scene.symbols[i])}));
    things.sort((a, b) => a.z - b.z).forEach(thing => {
      ctx.globalAlpha = fog(thing.z);
      thing.paint();
    });
    ctx.globalAlpha = 1;
  }
  function ball(p, symbol) {
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
  function stick(from, to, other, code, symbol) {
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

  function show(i) {
    const k = (i + scenes.length) % scenes.length;
    scene = scenes[k];
    rotation = TILT;
    zoom = 1;
    select.value = String(k);
    note.textContent = scene.note;
    draw();
  }
  function rotate(dx, dy) {
    rotation = multiply(multiply(turn(1, dx), turn(0, dy)), rotation);
    draw();
  }
  function nearer(factor) {
    zoom = Math.min(6, Math.max(0.4, zoom * factor));
    draw();
  }
  select.addEventListener("change", () => show(Number(select.value)));
  root.querySelectorAll("button[data-step]").forEach(button => button.addEventListener("click",
    () => show(Number(select.value) + Number(button.dataset.step))));
  canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
  canvas.addEventListener("pointermove", e => {
    if (e.buttons & 1) rotate(e.movementX * 0.011, e.movementY * 0.011);
  });
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    nearer(Math.exp(-e.deltaY * 0.0015));
  }, {passive: false});
  canvas.addEventListener("dblclick", () => show(Number(select.value)));
  canvas.addEventListener("keydown", e => {
    const step = {ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15],
      ArrowDown: [0, 0.15]}[e.key];
    if (step) rotate(...step);
    else if (e.key === "+" || e.key === "=") nearer(1.15);
    else if (e.key === "-") nearer(1 / 1.15);
    else return;
    e.preventDefault();
  });
  document.addEventListener("sciflow:show", e => {
    const k = scenes.findIndex(s => s.at === e.detail);
    if (k >= 0) show(k);
  });
  new ResizeObserver(draw).observe(canvas);
  window.addEventListener("beforeprint", draw);
  show(0);
})();

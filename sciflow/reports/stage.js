// A canvas on which records are turned, brought nearer and leafed through, without a network.
// `paint(ctx, scene, see, reach)` draws one: see(p) is a point as {x, y, z, size}, z towards the
// reader, size the pixels of a unit of length there. `enter(scene)` is told of each new one.
function sciflowStage(root, settings) {
  "use strict";
  const {pick, tilt, least, margin, paint, enter = () => {}} = settings;
  const scenes = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const canvas = root.querySelector("canvas"), ctx = canvas.getContext("2d");
  const note = root.querySelector(".viewer-note");
  const TILT = multiply(turn(0, tilt[0]), turn(1, tilt[1]));
  let scene = scenes[0], rotation = TILT, zoom = 1;

  function turn(axis, angle) {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === 0 ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
  }
  function multiply(a, b) {
    return a.map(r => [0, 1, 2].map(j => r[0] * b[0][j] + r[1] * b[1][j] + r[2] * b[2][j]));
  }

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
    const reach = Math.max(least, ...scene.x.map(p => Math.hypot(...p))) + margin;
    const scale = zoom * Math.min(w, h) / 2 / reach, eye = 5 * reach;
    const see = p => {
      const q = rotation.map(r => r[0] * p[0] + r[1] * p[1] + r[2] * p[2]);
      const near = eye / (eye - q[2]);
      return {x: w / 2 + q[0] * scale * near, y: h / 2 - q[1] * scale * near, z: q[2],
        size: scale * near};
    };
    paint(ctx, scene, see, reach);
    ctx.globalAlpha = 1;
  }

  function show(i) {
    const k = (i + scenes.length) % scenes.length;
    scene = scenes[k];
    rotation = TILT;
    zoom = 1;
    pick.value = String(k);
    note.textContent = scene.note;
    enter(scene);
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
  pick.addEventListener("change", () => show(Number(pick.value)));
  root.querySelectorAll("button[data-step]").forEach(button => button.addEventListener("click",
    () => show(Number(pick.value) + Number(button.dataset.step))));
  canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
  canvas.addEventListener("pointermove", e => {
    if (e.buttons & 1) rotate(e.movementX * 0.011, e.movementY * 0.011);
  });
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    nearer(Math.exp(-e.deltaY * 0.0015));
  }, {passive: false});
  canvas.addEventListener("dblclick", () => show(Number(pick.value)));
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
  return draw;
}

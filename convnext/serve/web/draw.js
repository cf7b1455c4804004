// What is drawn over an image: masks, boxes and classes, in the one palette.

const MAX_DRAWN = 1024; // pixels of a drawn mask: enough for a screen, and a photograph has ten times as many

export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function canvas(id, width, height) {
  const one = document.getElementById(id);
  Object.assign(one, { width, height });
  return one.getContext("2d", { willReadFrequently: id === "overlay" });
}

export function reduced(width, height) {
  const step = Math.ceil(Math.max(width, height) / MAX_DRAWN);
  return { step, columns: Math.ceil(width / step), rows: Math.ceil(height / step) };
}

// The palette of reports and drawings (convnext/report/palette.py), six hexadecimal digits per colour.
const COLOURS =
  "0072b2d55e00f08796b4001ea578ff3c875a00a5b4ffb400f0c3ff69f0d2d2e196784b7869002d0000d22d2d5ab4a55ac35a87690000ff69c3a5a5f0005a4b" +
  "5a3c96d24b4b780fff4bb496a50f4bb47878008787e18700ffe169c33c0fd200c3d2b487a54bf096e1e1f0b4b44b0087782d2d5a783c969669ffb4691ed2e1" +
  "e10f96d278a5c369d2783c00b4f0c3695a2d782d5a00d2a5b43c69870f788778a5696996b4874be1a5c3874b5a2d5a3c1e3cc3b496d2d2f0003cb41ef07878" +
  "b400785a1e1e00e11ed2b4ffd23c5a4b872da56978f0a5e1692d3c965a7887e1a5b4b44bffd2f069e178ff2dff694be10fb4b45a1e3c001ea5d24b2dd27887" +
  "4b2de10096e178b4a5781e000087960069694b784b5a87690fd2874b2d4b871e1ec369693cffa5f0b4c3695a875aa5a51e4b691ea587873c5a3cb478c3f087" +
  "87e1d27800b44b693ca5872d2d3c6900d2c30f4b3c2d4b2d694ba5875ad2f0c34be1873c694b872d96875a78b4f02d873c2d96962dff5ad2b4871e4b3c96b4" +
  "0f2d69c3695a4b96a54bc396a5000087690f4b874bf0d2ffb4965af087f000694b0000ffff8778694b2df0a56978004be169e1965aa5872d3c3c785a2da5c3" +
  "8769d2b4a5d2e1b4d2e11e780078a5e17896a5f0e1784b1e963c691e782d00d2d269a596b4e1c3c35a695a87b45a2d5a3cff5af0c396e196b44be1b42de1c3" +
  "f03c78966996693cd2690f87e1962d69f0b4ff96a569b487f04bc396873c00ffd2e187a587f0f04b2d0f87d2f0a54b5a9678c3873c96e1e14b1ea5e1b4c396" +
  "ff4b78d287c3693c8769870fd287fff0b4f0b4875aff87693c87a500c3b4f01e964b00e17887d25a0f5ac3b40078c3785a691ec31e3c4b4b1ed2d287003c2d" +
  "5a69c35a00690f69b4e196ffe18787e1a5d2692d875a69f03c0f96d22d4bb42d00962da569e196ffa55af05a4b870fa5691e1ec3964b1e2dc3a54bc30000b4" +
  "b4870fc35a3cb487d2f000a5a52d4ba51ee15a3c690fc3e1ffc378d21e87e11e1e6978ff4b1e782d96693c3c78f0e1a5873c3c3c873cd278f0c3e1b4b45a5a" +
  "96a56978000f7878e1";

export function colourOf(index) {
  const start = 6 * (index % (COLOURS.length / 6));
  return [0, 2, 4].map((at) => Number.parseInt(COLOURS.slice(start + at, start + at + 2), 16));
}

// As `text_on` of the palette: black or white, whichever has more contrast (WCAG 2).
function textOn(rgb) {
  const linear = rgb.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

export const css = (rgb) => `rgb(${rgb.join(" ")})`;

// Returns a function that draws the classes of a mask, a PNG whose values or colours are `ids`; of a class's index it draws that one alone.
export async function regions(content, width, height, ids) {
  const indices = await createImageBitmap(content, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { step, columns, rows } = reduced(width, height);
  const pen = canvas("overlay", columns, rows);
  pen.imageSmoothingEnabled = false; // the mean of two classes is a third
  pen.drawImage(indices, 0, 0, width / step, height / step);
  const image = pen.getImageData(0, 0, columns, rows);
  // A mask holds the values or colours of the data, which a canvas gives as red, green and blue.
  const packed = (red, green, blue) => (red << 16) | (green << 8) | blue;
  const known = new Map(ids.map((id, index) => [packed(...(Array.isArray(id) ? id : [id, id, id])), index]));
  const classes = new Int16Array(columns * rows);
  classes.forEach((_, at) => (classes[at] = known.get(packed(image.data[4 * at], image.data[4 * at + 1], image.data[4 * at + 2])) ?? -1));
  return (only = null) => {
    const colours = ids.map((_, index) => (only === null || only === index ? [...colourOf(index), 255] : [0, 0, 0, 0]));
    classes.forEach((index, at) => image.data.set(colours[index] ?? [0, 0, 0, 0], 4 * at));
    pen.putImageData(image, 0, 0);
  };
}

// Draws the masks of objects; returns whether there are any.
export function drawMasks(objects) {
  const masked = objects.filter(({ mask }) => mask);
  if (!masked.length) return false;
  const [height, width] = masked[0].mask.size;
  const { step, columns, rows } = reduced(width, height);
  const pen = canvas("overlay", columns, rows);
  const image = pen.createImageData(columns, rows);
  for (const { mask, rgb } of masked.reverse()) paint(image, runLengths(mask.counts), height, step, rgb); // the surest on top
  pen.putImageData(image, 0, 0);
  return true;
}

// COCO's compressed run lengths, as `rleFrString` of its maskApi.c reads them: five bits a character, the third on as differences.
export function runLengths(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// Runs go down the columns, and every second one is the object; every `step`th pixel is kept.
export function paint(image, runs, height, step, rgb) {
  let start = 0;
  runs.forEach((length, index) => {
    for (let at = start; index % 2 && at < start + length; ) {
      const x = Math.floor(at / height), y = at % height, end = Math.min(start + length, (x + 1) * height);
      for (let down = Math.ceil(y / step); x % step === 0 && down * step < y + end - at; down++) {
        image.data.set([...rgb, 255], 4 * (down * image.width + x / step));
      }
      at = end;
    }
    start += length;
  });
}

// Draws boxes in the pixels of an image that is `width` pixels wide.
export function drawBoxes(objects, width) {
  const image = document.getElementById("image"), density = window.devicePixelRatio || 1;
  const factor = (image.clientWidth * density) / width;
  const pen = canvas("boxes", image.clientWidth * density, image.clientHeight * density);
  Object.assign(pen, { lineWidth: 2 * density, font: `600 ${13 * density}px system-ui, sans-serif`, textBaseline: "top" });
  const placed = objects.map((one) => ({ ...one, edges: one.box.map((edge) => edge * factor) })).reverse(); // the surest on top
  for (const { edges: [left, top, right, bottom], rgb } of placed) {
    pen.strokeStyle = css(rgb);
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  for (const { class: name, score, edges: [left, top], rgb } of placed) {
    const words = `${name} ${percent(score)}`, line = 19 * density, above = Math.max(0, top - line);
    const long = pen.measureText(words).width + 10 * density, start = Math.max(0, Math.min(left - density, pen.canvas.width - long));
    pen.fillStyle = css(rgb);
    pen.fillRect(start, above, long, line);
    pen.fillStyle = textOn(rgb);
    pen.fillText(words, start + 5 * density, above + 3 * density);
  }
}

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
  "0072b2d55e00009e73cc79a7e69f0056b4e9964b2d4b4bff87f0962d1e963c2d5a96f0ff2d87ff5af0c3c3f069780f2d4bb45affe10f1e0fc3a500872d5ac3" +
  "691e004ba5ff3cc3d25ac387ff694bb43c0f0f4bd2005a875ae1d2693c5a965a4b69c3a50fe1694b69ff96d2ff5a007896d23c9687c3a569d2872d00690f3c" +
  "1effb4873c4b872d2d00969678962dc3696969ff875a2d96002db42d963c5ad278a53ca50f69e1b469879669a54ba5b43ce1a569e196874b7869b44b69c3c3" +
  "780f693c3cb4f0e14b00e1e15ab4ff00875a4bb4873c96ff872d1ee15a2d0fc3e13cb469005a964be15a003ce10096e178001ea55a2d1e78e169c3b4f0d278" +
  "5ae1c3c34b00e1871effb43c0f5a4b5a0f6996e1fff04b960f5af00fa5d296f0f00f4ba5d2d20096c3ffa53c3ca5f0e15a1e4b781e3ce13c5af08769962d69" +
  "d2694bb43ce10069c3b4b43c0f3cd25a3c782da5e10078c32db4b4b43c694b0f87782d693c78ffa52d1ef0b45a5aff4b965a871eb47869870f8778c31e0fb4" +
  "69c396783cb469c378d22d5a961e3cc300c38787b4008778c3b41e3c96a5004b87c35a3c00699600784b2de1b43ca54b2dffc34b00a5c33c4bf0875ab44bb4" +
  "963c5ad23c69a5a52d87d2f078f08769005a1ea5a54ba5f0b43c1e69e1872d3ca5692d5a5a4b78c3e1a55a1e789696c3a56978a52d00d278d2005ab4690fc3" +
  "0087d25af078e1693c875a78c30f96b478960096874bc3695a78b43c96f0ff3c1e2d872d0f3cc3695aa54b1ea5a50f9678f05a4bd28787001e3c2d8769b496" +
  "c378873c87f05a2d4b69b4a587c3f0ffb44b2d3c0f4bd2b40f4be169d296ff873c5a2d784bd2c387f0d28700a53c5ad25a1e965ad2a52df0b42d69d2691e0f" +
  "783c3c4bb4c31ed2d2002dd2b4004b0087a500b4f000d2e15a69f00f961e2df069f0c3695a2d69870f2d4b78f0690f2de13c1e69d25af0008769e1f0ff5ab4" +
  "6969964bb43c4b87e196a578b42d2d5a3cc3ffb42da55a78b4b44b963cd21e96b4b4f0a569b4d25ab4e10069a5b4f0b45a693cff3c2d5aff69695af0b4c378" +
  "96e14b69965ac396c3";

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

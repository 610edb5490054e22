// A picture as the model was trained to see it: resized by Pillow's filters, bit for bit, and cropped.
//
// transformers.js resizes without antialiasing, and browsers with a filter of their own. What comes out of
// `fit` has the model's size already, so that the client leaves it as it is.

const PRECISION = 22; // bits behind the point of Pillow's weights for pixels of 8 bits

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// By Pillow's numbers: how far a filter reaches, and its value.
const FILTERS = {
    1: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)], // lanczos
    2: [1, (x) => Math.max(0, 1 - Math.abs(x))], // bilinear
    3: [2, bicubic],
    4: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)], // box
    5: [1, hamming],
};

function bicubic(x) {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function hamming(x) {
    x = Math.abs(x);
    if (x === 0) return 1;
    if (x >= 1) return 0;
    x *= Math.PI;
    return (Math.sin(x) / x) * (0.54 + 0.46 * Math.cos(x));
}

/**
 * Returns for every place of a row of `to` pixels where it starts to read one of `from`, and the weights.
 */
function weights(from, to, [reach, filter]) {
    const scale = from / to;
    const wide = Math.max(scale, 1);
    const support = reach * wide;
    return Array.from({ length: to }, (_, place) => {
        const centre = (place + 0.5) * scale;
        const start = Math.max(0, Math.trunc(centre - support + 0.5));
        const end = Math.min(from, Math.trunc(centre + support + 0.5));
        const values = [];
        for (let x = start; x < end; ++x) values.push(filter((x - centre + 0.5) * (1 / wide)));
        const sum = values.reduce((a, b) => a + b, 0);
        const whole = values.map((value) => {
            const part = (sum === 0 ? value : value / sum) * 2 ** PRECISION;
            return Math.trunc(part < 0 ? part - 0.5 : part + 0.5);
        });
        return { start, whole };
    });
}

/**
 * Resizes along one axis: `step` is from a pixel to the next of that axis, `line` from a line to the next.
 */
function pass(data, table, lines, step, line, made, madeStep, madeLine) {
    const half = 2 ** (PRECISION - 1);
    for (let row = 0; row < lines; ++row) {
        table.forEach(({ start, whole }, place) => {
            for (let channel = 0; channel < 3; ++channel) {
                let sum = half;
                let at = row * line + start * step + channel;
                for (const weight of whole) {
                    sum += data[at] * weight;
                    at += step;
                }
                const value = Math.floor(sum / 2 ** PRECISION);
                made[row * madeLine + place * madeStep + channel] = Math.min(255, Math.max(0, value));
            }
        });
    }
}

function resize({ data, width, height }, to, resample) {
    if (resample === 0) return nearest({ data, width, height }, to);
    const filter = FILTERS[resample];
    if (!filter) throw new Error(`no filter of Pillow has the number ${resample}`);
    const across = (pixels) => resizeRows(pixels, to.width, filter);
    const down = (pixels) => resizeColumns(pixels, to.height, filter);
    const given = { data, width, height };
    // Each pass rounds to 8 bits, so that their order counts; this is Pillow 13's.
    const downFirst = to.height < height && height - to.height > 2 * (width - to.width);
    return downFirst ? across(down(given)) : down(across(given));
}

function resizeRows({ data, width, height }, to, filter) {
    if (to === width) return { data, width, height };
    const made = new Uint8ClampedArray(to * height * 3);
    pass(data, weights(width, to, filter), height, 3, width * 3, made, 3, to * 3);
    return { data: made, width: to, height };
}

function resizeColumns({ data, width, height }, to, filter) {
    if (to === height) return { data, width, height };
    const made = new Uint8ClampedArray(width * to * 3);
    pass(data, weights(height, to, filter), width, width * 3, 3, made, width * 3, 3);
    return { data: made, width, height: to };
}

function nearest({ data, width, height }, to) {
    const made = new Uint8ClampedArray(to.width * to.height * 3);
    for (let y = 0; y < to.height; ++y) {
        const row = Math.floor((y + 0.5) * (height / to.height));
        for (let x = 0; x < to.width; ++x) {
            const from = (row * width + Math.floor((x + 0.5) * (width / to.width))) * 3;
            made.set(data.subarray(from, from + 3), (y * to.width + x) * 3);
        }
    }
    return { ...to, data: made };
}

function cropped({ data, width, height }, crop) {
    const made = new Uint8ClampedArray(crop.width * crop.height * 3); // what lies outside is black
    const top = Math.floor((height - crop.height) / 2);
    const left = Math.floor((width - crop.width) / 2);
    for (let y = Math.max(0, -top); y < Math.min(crop.height, height - top); ++y) {
        for (let x = Math.max(0, -left); x < Math.min(crop.width, width - left); ++x) {
            const from = ((y + top) * width + x + left) * 3;
            made.set(data.subarray(from, from + 3), (y * crop.width + x) * 3);
        }
    }
    return { ...crop, data: made };
}

/**
 * Returns red, green and blue of an image, with what is transparent on white.
 */
function opaque({ data, width, height, channels }) {
    if (channels === 3) return { data, width, height };
    const made = new Uint8ClampedArray(width * height * 3);
    for (let pixel = 0; pixel < width * height; ++pixel) {
        const from = pixel * channels;
        const alpha = channels % 2 === 0 ? data[from + channels - 1] / 255 : 1;
        for (let channel = 0; channel < 3; ++channel) {
            const value = data[from + (channels < 3 ? 0 : channel)];
            made[pixel * 3 + channel] = value * alpha + 255 * (1 - alpha);
        }
    }
    return { data: made, width, height };
}

function target({ width, height }, size) {
    if (size.shortest_edge === undefined) return { width: size.width, height: size.height };
    const edge = size.shortest_edge;
    const longer = Math.floor((edge * Math.max(width, height)) / Math.min(width, height));
    return width <= height ? { width: edge, height: longer } : { width: longer, height: edge };
}

/**
 * Resizes and crops an image as the model's processor does in Python.
 *
 * @param {RawImage} image As `RawImage.read` gives it; its class is that of the result.
 * @param {Object} settings The content of `preprocessor_config.json`: `processor.image_processor.config`.
 */
export function fit(image, settings) {
    let pixels = opaque(image);
    if (settings.do_resize) pixels = resize(pixels, target(pixels, settings.size), settings.resample);
    if (settings.do_center_crop) pixels = cropped(pixels, settings.crop_size);
    return new image.constructor(pixels.data, pixels.width, pixels.height, 3);
}

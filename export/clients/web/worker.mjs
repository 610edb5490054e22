// Runs the models beside the page, so that it shows each token when it is there.

import {
    AutoProcessor,
    InterruptableStoppingCriteria,
    LlavaForConditionalGeneration,
    RawImage,
    TextStreamer,
    env,
} from './client/transformers.min.js';
import { fit } from './pictures.mjs';

const here = new URL('./', import.meta.url).href;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL(here).pathname; // whole addresses it takes for remote ones
env.useBrowserCache = false; // a folder that is packed anew has the same addresses
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = { mjs: `${here}client/WASM.mjs`, wasm: `${here}client/WASM.wasm` };
if (!self.crossOriginIsolated) env.backends.onnx.wasm.numThreads = 1; // threads need shared memory

const models = new Map();
const stopping = new InterruptableStoppingCriteria();

async function load(folder) {
    const files = new Map();
    const progress_callback = ({ status, file, loaded, total }) => {
        if (status !== 'progress') return;
        files.set(file, [loaded, total]);
        const sums = [0, 1].map((i) => [...files.values()].reduce((sum, both) => sum + both[i], 0));
        postMessage({ type: 'progress', folder, loaded: sums[0], total: sums[1] });
    };
    const processor = await AutoProcessor.from_pretrained(folder);
    const model = await LlavaForConditionalGeneration.from_pretrained(folder, { device: 'wasm', progress_callback });
    await warm(processor, model);
    return { processor, model };
}

/** Asks about a grey picture: what is made at the first run of a graph counts in nobody's time. */
async function warm(processor, model) {
    const { size, crop_size } = processor.image_processor.config;
    const { width, height } = crop_size ?? size;
    const grey = new RawImage(new Uint8ClampedArray(width * height * 3).fill(128), width, height, 3);
    const inputs = await read(processor, grey, 'a');
    await model.generate({ ...inputs, do_sample: false, max_new_tokens: 2 });
}

/** Returns token ids and pixels of a question about a picture. */
function read(processor, picture, question) {
    const content = [{ type: 'image' }, { type: 'text', text: question }];
    const prompt = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    return processor(picture, prompt, { add_special_tokens: false });
}

/** A model is loaded once; who asks for it meanwhile waits for the same. */
function loaded(folder) {
    if (!models.has(folder)) models.set(folder, load(folder));
    return models.get(folder);
}

async function ask({ folder, picture, question, most, number }) {
    const { processor, model } = await loaded(folder);
    if (number <= stopped) {
        postMessage({ type: 'skipped', folder });
        return;
    }
    const image = fit(await RawImage.fromBlob(picture), processor.image_processor.config);
    const started = performance.now();
    const inputs = await read(processor, image, question);
    const times = [];
    const streamer = new TextStreamer(processor.tokenizer, {
        skip_prompt: true,
        skip_special_tokens: true,
        callback_function: (text) => postMessage({ type: 'text', folder, text }),
        token_callback_function: () => times.push(performance.now()),
    });
    stopping.reset();
    const ids = await model.generate({
        ...inputs,
        do_sample: false,
        max_new_tokens: most,
        streamer,
        stopping_criteria: stopping,
    });
    const given = ids.slice(null, [inputs.input_ids.dims.at(-1), null]);
    const [text] = processor.batch_decode(given, { skip_special_tokens: true });
    const count = given.dims.at(-1);
    // The streamer's first call may be the prompt itself.
    const [first, last] = [times.at(-count), times.at(-1)];
    postMessage({
        type: 'answered',
        folder,
        text,
        tokens: count,
        first: first - started,
        speed: count > 1 ? ((count - 1) * 1000) / (last - first) : null,
    });
}

async function work(data) {
    if (data.type === 'ask') return ask(data);
    await loaded(data.folder);
    postMessage({ type: 'ready', folder: data.folder });
}

let queue = Promise.resolve();
let [asked, stopped] = [0, 0];
self.addEventListener('message', ({ data }) => {
    if (data.type === 'stop') {
        stopped = asked;
        stopping.interrupt();
        return;
    }
    if (data.type === 'ask') data.number = ++asked;
    queue = queue.then(() => work(data)).catch((failure) => {
        models.delete(data.folder);
        postMessage({ type: 'failed', folder: data.folder, text: String(failure?.message ?? failure) });
    });
});

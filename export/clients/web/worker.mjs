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
    const inputs = await processor(grey, processor.config.image_token, { add_special_tokens: false });
    await model.generate({ ...inputs, do_sample: false, max_new_tokens: 2 });
}

/** A model is loaded once; who asks for it meanwhile waits for the same. */
function loaded(folder) {
    if (!models.has(folder)) models.set(folder, load(folder));
    return models.get(folder);
}

async function ask({ folder, picture, question, most }) {
    const { processor, model } = await loaded(folder);
    const image = fit(await RawImage.fromBlob(picture), processor.image_processor.config);
    const content = [{ type: 'image' }, { type: 'text', text: question }];
    const prompt = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const started = performance.now();
    const inputs = await processor(image, prompt, { add_special_tokens: false });
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

let queue = Promise.resolve();
self.addEventListener('message', ({ data }) => {
    if (data.type === 'stop') {
        stopping.interrupt();
        return;
    }
    const work = data.type === 'load' ? () => loaded(data.folder).then(() => postMessage({ type: 'ready', folder: data.folder })) : () => ask(data);
    queue = queue.then(work).catch((failure) => {
        models.delete(data.folder);
        postMessage({ type: 'failed', folder: data.folder, text: String(failure?.message ?? failure) });
    });
});

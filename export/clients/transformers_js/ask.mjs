// Asks transformers.js questions about pictures of a packed folder; the job comes on stdin as JSON, the
// answers go to stdout. See `export/clients/transformers_js/node.py`.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const job = JSON.parse(readFileSync(0, 'utf8'));
const { AutoProcessor, LlavaForConditionalGeneration, RawImage, env } = await import(pathToFileURL(job.client));
const { fit } = await import(pathToFileURL(job.pictures));
env.allowRemoteModels = false;

const processor = await AutoProcessor.from_pretrained(job.folder);
const model = await LlavaForConditionalGeneration.from_pretrained(job.folder);

const GREEDY = { do_sample: false, repetition_penalty: 1, no_repeat_ngram_size: 0, return_dict_in_generate: true };

/** Answers the turns of one conversation; later turns go on with the cache of earlier ones. */
async function answers({ turns, image, max_new_tokens }) {
    const picture = image && fit(await RawImage.read(image), processor.image_processor.config);
    const messages = [];
    const found = [];
    let past = null;
    for (const question of turns) {
        const text = { type: 'text', text: question };
        messages.push({ role: 'user', content: picture && !past ? [{ type: 'image' }, text] : [text] });
        const { pixel_values, ...rows } = await read(messages, picture);
        const asked = past ? { ...rows, past_key_values: past } : pixel_values ? { ...rows, pixel_values } : rows;
        const { sequences, past_key_values } = await model.generate({ ...asked, ...GREEDY, max_new_tokens });
        const start = rows.input_ids.dims.at(-1);
        const [answer] = processor.batch_decode(sequences.slice(null, [start, null]), { skip_special_tokens: true });
        found.push({
            text: answer,
            token_ids: Array.from(rows.input_ids.data, Number),
            shape: pixel_values?.dims,
            pixels: pixel_values ? Buffer.from(new Float32Array(pixel_values.data).buffer).toString('base64') : null,
        });
        messages.push({ role: 'assistant', content: [{ type: 'text', text: answer }] });
        past = past_key_values;
    }
    return found;
}

/** Returns token ids of a conversation and the pixels of its picture. */
async function read(messages, picture) {
    const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
    const options = { add_special_tokens: false }; // the template has written them
    if (!picture) return processor.tokenizer(prompt, options);
    const { pixel_values, input_ids, attention_mask } = await processor(picture, prompt, options);
    return { pixel_values, input_ids, attention_mask };
}

const all = [];
for (const one of job.conversations) all.push(await answers(one));
process.stdout.write(JSON.stringify(all));

// The page: chooses a picture, asks the models one after another, shows what they answer.

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL('./worker.mjs', import.meta.url), { type: 'module' });
const cards = new Map();
const waiting = new Set();
let picture = null;
let ready = false;

const about = await (await fetch('page.json')).json();
const [compressed, original] = about.models;
document.title = `${about.name}: ask about a picture`;
at('name').textContent = about.name;
at('foot').textContent = about.foot;
at('both-row').hidden = !original;
for (const model of about.models) addCard(model);
show('Loading the model');
worker.postMessage({ type: 'load', folder: compressed.folder });

function addCard({ folder, title, detail }) {
    const card = at('card').content.firstElementChild.cloneNode(true);
    card.id = folder;
    card.querySelector('h2').textContent = title;
    card.querySelector('.detail').textContent = detail;
    card.querySelector('.answer').textContent = 'The answer will stand here.';
    at('answers').append(card);
    cards.set(folder, card);
}

function show(text, share = undefined) {
    at('told').textContent = text;
    const bar = at('loaded');
    if (share === undefined) bar.removeAttribute('value');
    else bar.value = share;
}

function settle() {
    const busy = waiting.size > 0;
    at('ask').disabled = busy || !ready || !picture;
    at('stop').disabled = !busy;
    document.body.dataset.state = busy ? 'busy' : ready ? 'ready' : 'starting';
    at('loaded').hidden = ready && !busy;
    if (!busy && ready) show(picture ? 'Ready' : 'Ready: choose a picture', 1);
}

function figures(card, values) {
    for (const [name, value] of Object.entries(values)) {
        card.querySelector(`[data-figure="${name}"]`).textContent = value;
    }
}

const on = {
    progress({ folder, loaded, total }) {
        const { title } = about.models.find((model) => model.folder === folder);
        const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
        show(`Loading: ${title}, ${megabytes(loaded)} of ${megabytes(total)} MB`, total ? loaded / total : undefined);
    },
    ready() {
        ready = true;
    },
    text({ folder, text }) {
        const card = cards.get(folder);
        if (card.dataset.state !== 'busy') {
            card.dataset.state = 'busy';
            card.querySelector('.answer').textContent = '';
        }
        card.querySelector('.answer').append(text);
        show(`Answering: ${card.querySelector('h2').textContent}`);
    },
    answered({ folder, text, tokens, first, speed }) {
        const card = cards.get(folder);
        card.querySelector('.answer').textContent = text;
        figures(card, {
            first: `${(first / 1000).toFixed(2)} s`,
            speed: speed === null ? '–' : speed.toFixed(1),
            tokens,
        });
        card.dataset.state = 'done';
        waiting.delete(folder);
    },
    skipped({ folder }) {
        const card = cards.get(folder);
        card.querySelector('.answer').textContent = 'Not asked.';
        card.dataset.state = 'idle';
        waiting.delete(folder);
    },
    failed({ folder, text }) {
        const card = cards.get(folder);
        const answer = card.querySelector('.answer');
        answer.textContent = `This did not work: ${text}`;
        answer.classList.add('error');
        card.dataset.state = 'failed';
        waiting.delete(folder);
    },
};
worker.addEventListener('message', ({ data }) => {
    on[data.type](data);
    settle();
});
worker.addEventListener('error', ({ message }) => {
    for (const { folder } of about.models) on.failed({ folder, text: message ?? 'the worker could not start' });
    settle();
});

function choose(file) {
    if (!file || !file.type.startsWith('image/')) return;
    picture = file;
    const preview = at('preview');
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.alt = `The chosen picture, ${file.name}`;
    preview.hidden = false;
    at('hint').hidden = true;
    settle();
}

at('picture').addEventListener('change', ({ target }) => choose(target.files[0]));
for (const kind of ['dragover', 'dragleave', 'drop']) {
    at('drop').addEventListener(kind, (event) => {
        event.preventDefault();
        at('drop').classList.toggle('over', kind === 'dragover');
        if (kind === 'drop') choose(event.dataTransfer.files[0]);
    });
}
at('stop').addEventListener('click', () => worker.postMessage({ type: 'stop' }));
at('question').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault();
        at('form').requestSubmit();
    }
});
at('form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (at('ask').disabled) return;
    const asked = original && at('both').checked ? [compressed, original] : [compressed];
    for (const { folder } of about.models) {
        const card = cards.get(folder);
        const answer = card.querySelector('.answer');
        const part = asked.some((model) => model.folder === folder);
        card.dataset.state = part ? 'waiting' : 'idle';
        answer.classList.remove('error');
        answer.textContent = part ? '…' : 'Not asked.';
        figures(card, { first: '–', speed: '–', tokens: '–' });
        if (!part) continue;
        waiting.add(folder);
        const [question, most] = [at('question').value.trim(), Number(at('most').value)];
        worker.postMessage({ type: 'ask', folder, picture, question, most });
    }
    settle();
});
settle();

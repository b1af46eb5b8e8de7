// What a shop needs of Affiliated: README.md beside this has the five minutes. Takes sign.mjs along, and nothing else.
//
//   node shop.mjs landing 'affiliate_click_id=06h0...&utm_source=x' [DAYS]    the header that keeps the click in a cookie
//   node shop.mjs tell STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]    reports, through the outbox
//   node shop.mjs try  STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]    what would become of it; nothing is recorded
//   node shop.mjs send [now]                                                  what is due in the outbox; for cron
//   node shop.mjs outbox                                                      what waits, and what was refused for good
//   node shop.mjs api METHOD PATH [JSON | @FILE.csv [IDEMPOTENCY_KEY]]        any call of the API
//
// In a shop of your own: landingCookie(), clickOf() and tell().

import { createHash, randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

import { attempt, call, run, setting, show } from './sign.mjs';

const CLICK_ID = /^[0-9a-z]{39}$/;

// The Set-Cookie of a page that a buyer lands on, or null. `days`: the campaign's attribution window.
export function landingCookie(query, days = 30) {
    const click = new URLSearchParams(query).getAll('affiliate_click_id').pop() ?? '';

    return CLICK_ID.test(click)
        ? `affiliate_click_id=${click}; Max-Age=${days * 86400}; Path=/; Secure; HttpOnly; SameSite=Lax`
        : null;
}

// The buyer's click at the order, out of the header Cookie; null if nobody sent him. Keep it with the order.
export function clickOf(cookieHeader) {
    return (cookieHeader ?? '').match(/(?:^|;\s*)affiliate_click_id=([0-9a-z]{39})(?:;|$)/)?.[1] ?? null;
}

// One file an event: when it is due, how often it was tried, its key, the event, and the last answer; a line each.
const outbox = () => process.env.AFFILIATE_OUTBOX || 'outbox';

// As a whole, or not at all.
async function write(path, ...lines) {
    const part = join(dirname(path), `.${basename(path)}.${process.pid}`);

    await mkdir(dirname(path), { recursive: true });
    const file = await open(part, 'w');
    await file.writeFile(lines.map((line) => `${String(line).replaceAll('\n', ' ')}\n`).join(''));
    await file.sync();
    await file.close();
    await rename(part, path);
}

// Keeps the event, then tries to send it: call it when the order's own transaction is done.
export async function tell(event) {
    const body = JSON.stringify(Object.fromEntries(Object.entries(event).sort()));
    // The same event has the same key, whenever and however often it is told.
    const key = `${event.status}-${createHash('sha256').update(body).digest('hex').slice(0, 32)}`;

    await write(join(outbox(), key), 0, 0, key, body, '');
    return sendFile(join(outbox(), key));
}

// Sent, it is gone; refused for good, it moves to refused/; else it waits 1, 2, 4 ... 60 minutes for the next try.
async function sendFile(path) {
    const [, before, key, body] = (await readFile(path, 'utf8')).split('\n');
    const tries = Number(before) + 1;
    const result = await attempt('POST', setting('AFFILIATE_URL'), key, Buffer.from(body));
    const { status } = result;
    const said = `${String(status).padStart(3, '0')} ${result.answer}`;

    if (status >= 200 && status < 300) {
        await rm(path, { force: true });
    } else if ([0, 401, 403, 408, 409, 429].includes(status) || status >= 500) { // not this event's fault
        const due = Math.floor(Date.now() / 1000) + Math.min(60 * 2 ** (tries - 1), 3600);

        await write(path, due, tries, key, body, said);
    } else {
        await write(join(outbox(), 'refused', key), 0, tries, key, body, said);
        await rm(path, { force: true });
    }

    return result;
}

async function waiting(directory) {
    const names = await readdir(directory).catch(() => []);

    return names.filter((name) => /^[a-z]+-/.test(name)).sort().map((name) => join(directory, name));
}

// Two at once send an event twice, which counts once.
export async function send(now = false) {
    let failed = 0;

    for (const path of await waiting(outbox())) {
        if (now || parseInt(await readFile(path, 'utf8'), 10) <= Date.now() / 1000) {
            const { status } = await sendFile(path);

            console.log(`${String(status).padStart(3, '0')} ${basename(path)}`);
            failed |= status < 200 || status > 299;
        }
    }

    return failed;
}

async function listOutbox() {
    for (const [state, directory] of [['waiting', outbox()], ['refused', join(outbox(), 'refused')]]) {
        for (const path of await waiting(directory)) {
            const [, tries, , body, answer] = (await readFile(path, 'utf8')).split('\n');

            console.log(`${state}, tried ${tries} times: ${body} ${answer}`);
        }
    }

    return 0;
}

function eventOf(status, order_id, click_id, amount, currency, refund_id) {
    const event = { status, order_id, click_id, amount, currency, refund_id };

    return Object.fromEntries(Object.entries(event).filter(([, value]) => value));
}

export async function api(method, path, body = '', key = '') {
    const file = body.startsWith('@') ? await readFile(body.slice(1)) : null;

    // Sent again within this call it counts once; give a key of your own for calls that may be repeated later.
    return call(method, setting('AFFILIATE_API') + path, key || (method === 'POST' ? randomUUID() : ''),
        file ?? Buffer.from(body), file ? 'text/csv' : 'application/json');
}

async function main([command, ...rest]) {
    const between = (least, most) => rest.length >= least && rest.length <= most;

    if (command === 'landing' && between(1, 2)) {
        const cookie = landingCookie(rest[0], Number(rest[1] ?? 30));

        console.log(cookie ? `Set-Cookie: ${cookie}` : 'no click');
        return 0;
    }
    if (command === 'tell' && between(3, 6)) {
        return show(await tell(eventOf(...rest)));
    }
    if (command === 'try' && between(3, 6)) {
        const body = JSON.stringify({ body: JSON.stringify(eventOf(...rest)) });

        return show(await api('POST', `/merchants/${setting('AFFILIATE_MERCHANT')}/dry-runs`, body));
    }
    if (command === 'send' && (rest.length === 0 || (rest.length === 1 && rest[0] === 'now'))) {
        return send(rest.length === 1);
    }
    if (command === 'outbox' && between(0, 0)) {
        return listOutbox();
    }
    if (command === 'api' && between(2, 4)) {
        return show(await api(...rest));
    }

    console.error('usage: shop.mjs landing | tell | try | send | outbox | api ..., as the first lines of it say');
    return 2;
}

await run(import.meta.url, main);

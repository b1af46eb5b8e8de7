/*
 * Writes ngx_http_affiliate_agents.c: which User-Agents declare themselves bots or link previews.
 *
 *   npm pack crawler-user-agents isbot        (and unpack both)
 *   node agents.mjs CRAWLER-USER-AGENTS-DIR ISBOT-DIR > ngx_http_affiliate_agents.c
 *
 * The two lists are regular expressions made for "is this a crawler?". Here the question is dearer:
 * a person taken for a bot costs an affiliate a commission, a bot taken for a person costs a line
 * in a statistic. So every expression becomes literals that are held to word boundaries wherever
 * the list's own examples allow it, and words that people's apps also carry are left out. All
 * literals go into one trie. The report on stderr names every example that does not match.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

// A literal's class. STRONG names a program, WEAK is a word that programs like; a SHIELD (the mark
// of an in-app browser) outweighs any number of weak words, a MASK undoes a weak word that ends
// where it ends. PREVIEW outweighs everything: previews borrow names of browsers and bots alike.
const PREVIEW = 1, STRONG = 2, WEAK = 4, SHIELD = 8, MASK = 16;

// Beyond a byte: the edges of the text.
const START = 256, END = 257;

// The filter in front of the trie, and the owner of a free place in it.
const FILTER_BITS = 65536, FILTER_SHIFT = 16, FILTER_FACTOR = 0x9e3779b1, NOBODY = 0xffff0000;

// ---- lists kept by hand -------------------------------------------------------------------------

// What messengers and networks send to draw a card, and apps to load ahead. ^ is the text's start.
const PREVIEWS = [
    '^whatsapp', 'facebookexternalhit', 'facebot', 'facebookcatalog', 'meta-externalhit',
    'meta-externalfetcher', 'telegrambot', 'twitterbot', '^viber', 'slackbot', 'slack-imgproxy',
    'discordbot', 'linkedinbot', 'skypeuripreview', 'microsoftpreview', 'bingpreview',
    'pinterestbot', 'pinterest.com/bot', 'pinterest/0.', 'thirdlandingpagefeinfra',
    'snap url preview', 'snapurlpreview', 'iframely', 'embedly', 'redditbot', 'vkshare',
    'google web preview', 'developers.google.com/+/web/snippet', 'google-pagerenderer',
    'googleimageproxy', 'yahoo link preview', 'yahoomailproxy', 'flipboardproxy', 'kakaotalk-scrap',
    'line-poker', 'bluesky cardyb', 'mastodon/', 'synapse (bot', 'mattermost-bot', 'rocket.chat',
    'onebox', 'linkpreview', 'link preview', 'link-preview', 'linkunfurl', 'unfurlbot',
    'linkexpanding', 'richlinkbot', 'previewbot', 'opengraph', 'dingtalkbot-linkservice', 'zalobot',
    'tumblr/14', 'imo-link', 'viberbot',
];

// Programs that neither list has, or has in a form that was left out below.
const PROGRAMS = [
    '^curl', '^wget', '^python', '^okhttp', '^dalvik/', '^dart', '^java/', '^java-', '^ruby',
    '^perl', '^php', '^go ', '^node', '^coccoc/', '^axios', '^apache-', '^libcurl', '^lynx-fetch',
    '^winhttp', '^postman', '^insomnia/', '^reactornetty', '^undici', '^restsharp', '^aiohttp',
    '^guzzle', '^faraday', '^symfony', '^rest-client', '^unirest', '^vertx', '^async-http',
    '^jakarta', '^microsoft office', '^windowspowershell', '^powershell', '^dnf', '^apt-http',
    '^ktor-client', '^alamofire', 'cfnetwork/', 'phantomjs', 'slimerjs', 'headlesschrome',
    'headlessedg', 'puppeteer', 'playwright', 'webdriver', 'selenium', 'sogou web spider',
    'sogou inst spider', 'bytespider', 'petalbot', 'yandexbot', 'baiduspider', '^google ',
    '^google-', '^googlebot', 'ms-office', 'windowspowershell', 'java/1.', 'libwww-perl', '^libwww',
    'winhttprequest', 'ia_archiver', 'site24x7', 'googleother',
];

// Words. The last ones are a contact in the text, which no browser gives.
const WORDS = [
    'bot$b', 'bots$b', 'bot_', 'crawl', 'spider', 'headless', 'http', '.com/', '.com)', '.com;',
    '.com ', '.com,', '.com$', 'mailto:', '(compatible)', ' scraper', 'scraping',
    // "(compatible; Name": MSIE, Konqueror, Opera, iCab and Windows Mobile were browsers.
    ...[...'abcdefghjlnpqrstuvxyz0123456789'].map((c) => `(compatible; ${c}`),
];

const MASKS = ['$bcubot', 'user-agent', 'libhttp', 'user agent'];

// Where people are: browsers inside apps.
const SHIELDS = [
    'instagram ', 'fban/', 'fbav/', 'fb_iab/', 'fbios', 'metaiab', 'messengerforios', 'musical_ly',
    'bytedancewebview', 'bytelocale/', 'trill_', 'tiktok ', ' viber/', ' line/', 'micromessenger/',
    ' snapchat/', 'twitter for ', 'twitterandroid', '[linkedinapp]', 'linkedinapp', ' gsa/',
    '[pinterest/', 'pinterest for', 'kakaotalk ', ' zalo', 'telegram-android/', ' telegram/',
    'barcelona ', ' weibo', '__weibo__', 'qqbrowser/', ' qq/', 'alipayclient', 'aliapp(', 'daraz',
    ' reddit/', 'duckduckgo/', 'whatsapp-', 'naver(', 'discord/', 'kiwi',
];

// Expressions of the lists that are people's, too, or that say nothing about a program.
const LEFT_OUT = new Map(Object.entries({
    // crawler-user-agents
    'AP3A\\.240617\\.008': 'an Android build, of telephones in their owners\' hands',
    'MetaIAB Facebook': 'the in-app browser of Facebook', 'Fluid': 'a browser for one site',
    'Code\\/1\\.': 'the browser of an editor', 'Trae\\/': 'the same',
    'Sogou': 'browsers carry it; its spiders are listed by hand',
    'coccoc': 'a browser\'s name; its bot says bot', '^Silk\\/': 'browsers of Fire tablets',
    'Viber': 'listed by hand', 'WhatsApp': 'listed by hand', 'Tumblr\\/': 'listed by hand',
    'Instapaper\\/': 'an app that people read in', 'Feedly': 'the same', 'Flipboard': 'the same',
    'Grammarly\\/': 'an app', 'PayPal\\/': 'an app', 'Bluesky\\/': 'an app',
    'Genieo': 'a toolbar in browsers', 'BTWebClient': 'a program of people',
    'Google-Read-Aloud': 'a person listens', 'Disqus': 'an app',
    // isbot
    '(?:^|[^g])news(?!sapphire)': 'a word of apps', '(?<!cam)scan': 'a word of apps: QR codes',
    '(?<! channel/|google/)google(?!(?:wv|app|/google| pixel))': 'a word of apps and telephones',
    '(?<! cu)bots?(?:\\b|_)': 'among the words above', '(?<!lib)http': 'among the words above',
    '\\.com\\b': 'among the words above', 'java(?!;)': 'a platform of telephones', 'grab': 'an app',
    'feed': 'a word of apps', 'insight': 'the same', 'discovery': 'the same', 'radar': 'the same',
    'download': 'the same', 'library': 'the same', 'server': 'the same', 'tools': 'the same',
    'proxy': 'the same', 'url': 'the same', 'capture': 'the same', 'catch': 'the same',
    'splash': 'the same', 'detect': 'the same', 'measure': 'the same', 'optimize': 'the same',
    'archive': 'the same', 'advisor': 'the same', 'audit': 'the same', 'abuse': 'the same',
    'sogou': 'see above', 'chromeframe': 'a browser\'s plug-in', '^netsurf': 'a browser',
    'transcoder': 'people on old telephones', 'ibisbrowser': 'a browser', 'browsex': 'a browser',
    '^amaya': 'a browser', 'offbyone': 'a browser', 'virtuoso': 'a word',
    '^offline': 'a browser\'s mode',
    // Shapes of a whole text: ngx_http_affiliate_agent_classify() has its own.
    ';\\s\\w+;$': 'shape', '@[a-z][\\w-]+\\.': 'shape', '\\(\\)': 'shape',
    '\\b\\w+/1\\.0;': 'shape', '\\|': 'shape',
    '^[\\w \\.\\-\\(?:\\):%]+(?:/v?\\d+(?:\\.\\d+)?(?:\\.\\d{1,10})*?)?(?:,|$)': 'shape',
    '^[\\w\\-]+/[\\w]+$': 'shape', '^[^ ]{50,}$': 'shape', '^\\d+\\b': 'shape',
    '^\\w*search\\b': 'shape', '^\\w+/[\\w\\(\\)]*$': 'shape',
    '^\\w+/\\d\\.\\d\\s\\([\\w@]+\\)$': 'shape', '^mozilla/\\d\\.\\d\\s[\\w\\.-]+$': 'shape',
    '^mozilla/\\d\\.\\d\\s\\((?:compatible;)?(?:\\s?[\\w\\d-.]+[\\s/]\\d+\\.\\d+)?\\)$': 'shape',
}));

// Expressions that are no set of literals, and what stands for them.
const REPLACED = {
    'AdsBot-Google([^-]|$)': ['AdsBot-Google'],
    'BlogTraffic\\/\\d\\.\\d+ Feed-Fetcher': ['BlogTraffic/'],
    'ContextualBot[\\s\\S]*outcomes\\.net': ['ContextualBot'],
    'Current[\\s\\S]*RSS Reader': ['RSS Reader'],
    'Spider[\\s\\S]*spider\\.com': ['spider.com'],
    '^dispatch/\\d': ['^dispatch/'],
    '^zdm/\\d': ['^zdm/'],
    'ptst[ /]\\d': ['ptst/', 'ptst '],
};

// ---- from expressions to literals ---------------------------------------------------------------

class Unsupported extends Error {}

const isWord = (c) => (c >= 0x30 && c <= 0x39) || (c >= 0x61 && c <= 0x7a);
const lower = (c) => (c >= 0x41 && c <= 0x5a ? c | 0x20 : c);

/*
 * The literals of a regular expression of literals, classes, groups, alternatives, "?", ^, $, \b.
 * A literal: {codes, before, after}; before and after ask for a word boundary there.
 */
function expand(source) {
    let at = 0;

    const join = (left, right) => left.flatMap((a) => right.map((b) => {
        if ((a.after && b.codes.length) || (b.before && a.codes.length)) {
            throw new Unsupported(`boundary inside ${source}`);
        }
        return {
            codes: [...a.codes, ...b.codes],
            before: a.before || b.before,
            after: a.after || b.after,
        };
    }));
    const literal = (code) => [{ codes: [code], before: false, after: false }];
    const nothing = () => [{ codes: [], before: false, after: false }];

    function escape() {
        const c = source[at++];

        if (c === 's') {
            return [0x20];
        }
        if (/[a-zA-Z]/.test(c)) {
            throw new Unsupported(`\\${c} in ${source}`);
        }
        return [c.charCodeAt(0)];
    }

    function bracket() {
        const codes = [];

        if (source[at] === '^') {
            throw new Unsupported(`[^ in ${source}`);
        }
        while (source[at] !== ']') {
            const c = source[at++];

            if (source[at] === '-' && source[at + 1] !== ']') {
                throw new Unsupported(`range in ${source}`);
            }
            codes.push(...(c === '\\' ? escape() : [c.charCodeAt(0)]));
        }
        at++;
        return codes.flatMap(literal);
    }

    function atom(first) {
        const c = source[at++];

        switch (c) {
        case '^':
            return literal(START);
        case '$':
            return literal(END);
        case '(': {
            if (source[at] === '?') {
                if (source[at + 1] !== ':') {
                    throw new Unsupported(`look-around in ${source}`);
                }
                at += 2;
            }
            const inner = alternatives();
            at++;
            return inner;
        }
        case '[':
            return bracket();
        case '\\':
            if (source[at] === 'b') {
                at++;
                return [{ codes: [], before: first, after: !first }];
            }
            return escape().flatMap(literal);
        case '.': case '*': case '+': case '{':
            throw new Unsupported(`${c} in ${source}`);
        default:
            return literal(c.charCodeAt(0));
        }
    }

    function sequence() {
        let result = nothing(), first = true;

        while (at < source.length && source[at] !== '|' && source[at] !== ')') {
            let piece = atom(first);

            first = false;
            if (/[*+{]/.test(source[at] ?? '')) {
                throw new Unsupported(`${source[at]} in ${source}`);
            }
            if (source[at] === '?') {
                at++;
                piece = [...piece, ...nothing()];
            }
            result = join(result, piece);
        }
        return result;
    }

    function alternatives() {
        const result = sequence();

        while (source[at] === '|') {
            at++;
            result.push(...sequence());
        }
        return result;
    }

    const result = alternatives();
    const folded = result.map((l) => ({ ...l, codes: l.codes.map(lower) }));

    // "(sistrix|SISTRIX)" is one literal here.
    return [...new Map(folded.map((l) => [JSON.stringify(l), l])).values()];
}

/* A hand-kept literal: ^ at its start, $ at its end, $b at either for a word boundary. */
function literalOf(text, kind) {
    const l = { codes: [], before: false, after: false, kind, from: text };
    let s = text;

    if (s.startsWith('$b')) {
        l.before = true;
        s = s.slice(2);
    }
    if (s.endsWith('$b')) {
        l.after = true;
        s = s.slice(0, -2);
    }
    if (s.startsWith('^')) {
        l.codes.push(START);
        s = s.slice(1);
    }
    const end = s.endsWith('$');
    l.codes.push(...Buffer.from(end ? s.slice(0, -1) : s, 'latin1'));
    if (end) {
        l.codes.push(END);
    }
    return l;
}

// ---- matching, in JavaScript: what the C does ---------------------------------------------------

const textOf = (agent) => [START, ...[...Buffer.from(agent, 'utf8')].map(lower), END];

function holds(text, literal, at) {
    const { codes } = literal;

    for (let i = 0; i < codes.length; i++) {
        if (text[at + i] !== codes[i]) {
            return false;
        }
    }
    return !(literal.before && isWord(text[at - 1]))
        && !(literal.after && isWord(text[at + codes.length]));
}

function found(text, literal) {
    for (let at = 0; at + literal.codes.length <= text.length; at++) {
        if (holds(text, literal, at)) {
            return true;
        }
    }
    return false;
}

function classify(agent, literals) {
    const text = textOf(agent);
    const byEnd = new Map();
    let seen = agent.includes(' ') ? 0 : WEAK;

    for (const l of literals) {
        for (let at = 0; at + l.codes.length <= text.length; at++) {
            if (text[at] === l.codes[0] && holds(text, l, at)) {
                const end = at + l.codes.length;

                byEnd.set(end, (byEnd.get(end) ?? 0) | l.kind);
            }
        }
    }
    for (const kinds of byEnd.values()) {
        seen |= kinds & MASK ? kinds & ~WEAK : kinds;
    }
    if (seen & PREVIEW) {
        return 'preview';
    }
    return seen & STRONG || (seen & (WEAK | SHIELD)) === WEAK ? 'bot' : 'human';
}

// ---- the lists ----------------------------------------------------------------------------------

function fromCrawlerList(list) {
    const literals = [];

    for (const { pattern, instances, tags } of list) {
        if (LEFT_OUT.has(pattern)) {
            continue;
        }

        const made = REPLACED[pattern]?.map((t) => literalOf(t.toLowerCase(), 0))
            ?? expand(pattern);
        const kind = (tags ?? []).includes('social-preview') ? PREVIEW : STRONG;
        const texts = instances.map(textOf);

        for (const l of made) {
            const mine = texts.filter((t) => found(t, l));
            const strict = { ...l, kind, from: pattern };
            const narrow = (change) => {
                const candidate = { ...strict, ...change };

                if (mine.every((t) => found(t, candidate))) {
                    Object.assign(strict, change);
                }
            };

            if (isWord(l.codes[0])) {
                narrow({ before: true });
            }
            if (isWord(l.codes.at(-1))) {
                narrow({ after: true });
            }
            // A short name is asked for at the text's start, if it always stood there.
            if (l.codes.length < 7 && l.codes[0] !== START && mine.length > 0) {
                narrow({ codes: [START, ...l.codes], before: false });
            }
            literals.push(strict);
        }
    }
    return literals;
}

function fromIsbot(patterns) {
    return patterns.filter((p) => !LEFT_OUT.has(p)).flatMap((pattern) =>
        (REPLACED[pattern]?.map((t) => literalOf(t, 0)) ?? expand(pattern)).map((l) =>
            ({ ...l, kind: l.codes[0] === START ? STRONG : WEAK, from: pattern })));
}

/* Without literals that a shorter one of the same or a stronger class makes superfluous. */
function reduce(literals) {
    const covers = (a, b) => {
        // Only bytes inside b are known: a boundary of a must fall inside b, or be asked for by b.
        for (let at = 0; at + a.codes.length <= b.codes.length; at++) {
            const end = at + a.codes.length;

            if (!a.codes.every((c, i) => b.codes[at + i] === c)) {
                continue;
            }
            const before = !a.before || (at > 0 ? !isWord(b.codes[at - 1]) : b.before);
            const after = !a.after || (end < b.codes.length ? !isWord(b.codes[end]) : b.after);
            if (before && after) {
                return true;
            }
        }
        return false;
    };
    const key = (l) => JSON.stringify([l.codes, l.before, l.after, l.kind]);
    const unique = [...new Map(literals.map((l) => [key(l), l])).values()];
    const masks = unique.filter((l) => l.kind === MASK);
    const replaces = (a, b) => {
        if (a === b || !covers(a, b)) {
            return false;
        }
        if (a.kind === b.kind) {
            return !covers(b, a) || unique.indexOf(a) < unique.indexOf(b);
        }
        // Among STRONG and WEAK: a bot is a bot by a word, too, unless a mask could undo it.
        return (a.kind | b.kind) === (STRONG | WEAK)
            && (a.kind === STRONG || (!covers(b, a) && !masks.some((m) => covers(m, b))));
    };

    return unique.filter((b) => b.kind === MASK || b.kind === SHIELD
        || !unique.some((a) => replaces(a, b)));
}

// ---- the trie -----------------------------------------------------------------------------------

function build(literals) {
    const states = [{ next: new Map(), own: [] }];

    for (const l of literals) {
        let n = states[0];

        for (const c of l.codes) {
            if (!n.next.has(c)) {
                states.push({ next: new Map(), own: [] });
                n.next.set(c, states.at(-1));
            }
            n = n.next.get(c);
        }
        n.own.push(l);
    }
    states.forEach((n, i) => { n.id = i; });
    return states;
}

/* The distinct sets of literals that end in a state, and each state's. */
function outputs(states) {
    const lists = new Map([['', 0]]);
    const table = [0];

    for (const s of states) {
        const all = s.own.map((l) => l.kind | (l.before ? 0x20 : 0) | (l.after ? 0x40 : 0));
        const words = [...new Set(all)].sort((a, b) => a - b);

        if (words.length > 0) {
            words[words.length - 1] |= 0x80;
        }
        const key = words.join();
        if (!lists.has(key)) {
            lists.set(key, table.length);
            table.push(...words);
        }
        s.out = lists.get(key);
    }
    return table;
}

/* Row displacement: the states' rows laid into one array wherever they do not collide. */
function comb(states, classes) {
    const check = [], next = [], base = [];
    const rows = states.map((s) => [...s.next].map(([c, n]) => [classes(c), n.id]));
    let low = 0;

    for (const i of rows.map((_, n) => n).sort((a, b) => rows[b].length - rows[a].length)) {
        let at = 0;

        if (rows[i].length > 0) {
            at = rows[i].length > 1 ? 0 : Math.max(0, low - rows[i][0][0]);
            while (rows[i].some(([c]) => check[at + c] !== undefined)) {
                at++;
            }
        }
        base[i] = at;
        for (const [c, n] of rows[i]) {
            check[at + c] = i;
            next[at + c] = n;
        }
        while (check[low] !== undefined) {
            low++;
        }
    }
    return { base, check, next };
}

/* A bit for every four classes that a literal begins with, hashed as the C does it. */
function filter(literals, classes, count) {
    const words = new Array(FILTER_BITS / 32).fill(0);

    for (const { codes } of literals.filter((l) => l.codes[0] !== START)) {
        const grams = codes.length > 3 ? [codes.slice(0, 4).map(classes)]
            : Array.from({ length: count }, (_, c) => [...codes.map(classes), c]);

        if (codes.length < 3) {
            throw new Error(`too short a literal: ${codes}`);
        }
        for (const g of grams) {
            const window = g.reduce((h, c) => h << 6 | c, 0);
            const bit = Math.imul(window, FILTER_FACTOR) >>> FILTER_SHIFT;

            words[bit >> 5] = (words[bit >> 5] | 1 << (bit & 31)) >>> 0;
        }
    }
    return words;
}

// ---- writing ------------------------------------------------------------------------------------

function array(type, name, values) {
    const width = Math.max(...values.map((v) => String(v).length));
    const perLine = Math.floor(76 / (width + 2));
    const lines = [];

    for (let i = 0; i < values.length; i += perLine) {
        const line = values.slice(i, i + perLine).map((v) => `${String(v).padStart(width)},`);

        lines.push(`    ${line.join(' ')}\n`);
    }
    return `static const ${type}  ngx_http_affiliate_agent_${name}[] = {\n${lines.join('')}};\n`;
}

/* A text's paragraphs as lines of a comment. */
function wrapped(text) {
    return text.trim().split(/\n\n+/).map((paragraph) => {
        const lines = [' *'];

        for (const word of paragraph.split(/\s+/)) {
            if (lines.at(-1).length + 1 + word.length > 78) {
                lines.push(' *');
            }
            lines.push(`${lines.pop()} ${word}`);
        }
        return lines.join('\n');
    }).join('\n *\n');
}

function write(literals, packages, licence) {
    const states = build(literals);
    const table = outputs(states);
    const symbols = [...new Set(literals.flatMap((l) => l.codes))].sort((a, b) => a - b);
    const number = new Map(symbols.map((c, i) => [c, i + 1]));
    const classes = (c) => number.get(c) ?? 0;
    const count = symbols.length + 1;

    const bytes = Array.from({ length: 256 }, (_, b) => {
        const c = lower(b);

        return classes(c) | (isWord(c) ? 0x80 : 0);
    });
    const { base, check, next } = comb(states, classes);
    const room = Math.max(...base) + count;
    const moves = Array.from({ length: room },
        (_, i) => (check[i] === undefined ? NOBODY : check[i] * 65536 + next[i]));
    const hex = (v) => `0x${v.toString(16).padStart(8, '0')}`;
    const words = filter(literals, classes, count);

    if (count > 64 || states.length > 65535 || room > 65535 || table.length > 255) {
        throw new Error('the tables are too small for these lists');
    }

    const size = 256 + FILTER_BITS / 8 + 3 * states.length + 4 * room + table.length;

    process.stderr.write(`${literals.length} literals, ${states.length} states, `
        + `${count} classes, ${size} bytes\n`);

    return `
/*
 * Which User-Agents declare themselves bots or link previews: a trie of ${literals.length}
 * literals, and in front of it a filter that knows how each of them begins,
 * which lets few places of a browser's text through.
 *
 * Generated by agents.mjs; change that, not this.  Made from
${packages.map((p) => ` *     ${p}`).join('\n')}
 * and the lists in agents.mjs.
 *
 * The licence of crawler-user-agents:
 *
${wrapped(licence)}
 */


#include "ngx_http_affiliate_fraud.h"


#define NGX_HTTP_AFFILIATE_AGENT_IS_PREVIEW    0x01
#define NGX_HTTP_AFFILIATE_AGENT_STRONG        0x02
#define NGX_HTTP_AFFILIATE_AGENT_WEAK          0x04
#define NGX_HTTP_AFFILIATE_AGENT_SHIELD        0x08
#define NGX_HTTP_AFFILIATE_AGENT_MASK          0x10
#define NGX_HTTP_AFFILIATE_AGENT_KINDS         0x1f
#define NGX_HTTP_AFFILIATE_AGENT_BEFORE        0x20
#define NGX_HTTP_AFFILIATE_AGENT_AFTER         0x40
#define NGX_HTTP_AFFILIATE_AGENT_LAST          0x80

#define NGX_HTTP_AFFILIATE_AGENT_ROOT          0
#define NGX_HTTP_AFFILIATE_AGENT_START         ${states[0].next.get(START).id}
#define NGX_HTTP_AFFILIATE_AGENT_END           ${classes(END)}

#define ngx_http_affiliate_agent_class(c)                                     \\
    (ngx_http_affiliate_agent_classes[c] & 0x3f)
#define ngx_http_affiliate_agent_is_word(c)                                   \\
    (ngx_http_affiliate_agent_classes[c] & 0x80)


static ngx_uint_t ngx_http_affiliate_agent_walk(ngx_uint_t state,
    const u_char *agent, const u_char *from, const u_char *end,
    const u_char **masked);


/* A byte's column; the high bit is set for letters and digits. */
${array('u_char', 'classes', bytes)}
/* A bit for each hash of four columns that begin a literal. */
${array('uint32_t', 'filter', words.map(hex))}
/* Where a state's row begins in "moves". */
${array('uint16_t', 'base', base)}
/* The state that the place belongs to << 16, and the one it leads to. */
${array('uint32_t', 'moves', moves.map(hex))}
/* Where the literals that end in a state begin in "literals"; 0 is none. */
${array('u_char', 'found', states.map((s) => s.out))}
/* Kind and boundaries. */
${array('u_char', 'literals', table)}

ngx_http_affiliate_agent_e
ngx_http_affiliate_agent_classify(const u_char *agent, size_t len)
{
    uint32_t       window, bit;
    ngx_uint_t     seen;
    const u_char  *p, *end, *masked;

    end = agent + len;
    masked = NULL;

    /* a lone product without a comment is a program's, not a browser's */

    seen = memchr(agent, ' ', len) == NULL ? NGX_HTTP_AFFILIATE_AGENT_WEAK : 0;

    seen |= ngx_http_affiliate_agent_walk(NGX_HTTP_AFFILIATE_AGENT_START, agent,
                                          agent, end, &masked);
    p = agent;

    if (len > 3) {
        window = (uint32_t) ngx_http_affiliate_agent_class(p[0]) << 12
                 | (uint32_t) ngx_http_affiliate_agent_class(p[1]) << 6
                 | ngx_http_affiliate_agent_class(p[2]);

        for ( /* void */ ; p < end - 3; p++) {
            window = (window << 6 | ngx_http_affiliate_agent_class(p[3]))
                     & 0xffffff;
            bit = window * ${FILTER_FACTOR}u >> ${FILTER_SHIFT};

            if (ngx_http_affiliate_agent_filter[bit >> 5] >> (bit & 31) & 1) {
                seen |= ngx_http_affiliate_agent_walk(
                                           NGX_HTTP_AFFILIATE_AGENT_ROOT,
                                           agent, p, end, &masked);
            }
        }
    }

    for ( /* void */ ; p < end; p++) {
        seen |= ngx_http_affiliate_agent_walk(NGX_HTTP_AFFILIATE_AGENT_ROOT,
                                              agent, p, end, &masked);
    }

    if (seen & NGX_HTTP_AFFILIATE_AGENT_IS_PREVIEW) {
        return NGX_HTTP_AFFILIATE_AGENT_PREVIEW;
    }

    if (seen & NGX_HTTP_AFFILIATE_AGENT_STRONG) {
        return NGX_HTTP_AFFILIATE_AGENT_BOT;
    }

    if ((seen & NGX_HTTP_AFFILIATE_AGENT_WEAK)
        && !(seen & NGX_HTTP_AFFILIATE_AGENT_SHIELD))
    {
        return NGX_HTTP_AFFILIATE_AGENT_BOT;
    }

    return NGX_HTTP_AFFILIATE_AGENT_HUMAN;
}


/*
 * The kinds of the literals that begin at "from".  "masked" is where a mask
 * ended: a mask begins before the word that it undoes, and ends with it.
 */

static ngx_uint_t
ngx_http_affiliate_agent_walk(ngx_uint_t state, const u_char *agent,
    const u_char *from, const u_char *end, const u_char **masked)
{
    uint32_t       move;
    ngx_uint_t     seen, class;
    const u_char  *p, *literal;

    seen = 0;

    for (p = from; p <= end; p++) {
        class = p < end ? ngx_http_affiliate_agent_class(*p)
                        : NGX_HTTP_AFFILIATE_AGENT_END;

        move = ngx_http_affiliate_agent_moves[
                                ngx_http_affiliate_agent_base[state] + class];

        if (move >> 16 != state) {
            break;
        }

        state = move & 0xffff;

        if (ngx_http_affiliate_agent_found[state] == 0) {
            continue;
        }

        literal = &ngx_http_affiliate_agent_literals[
                                       ngx_http_affiliate_agent_found[state]];

        for ( ;; literal++) {

            if (!((*literal & NGX_HTTP_AFFILIATE_AGENT_BEFORE)
                  && from > agent
                  && ngx_http_affiliate_agent_is_word(from[-1]))
                && !((*literal & NGX_HTTP_AFFILIATE_AGENT_AFTER)
                     && p + 1 < end && ngx_http_affiliate_agent_is_word(p[1])))
            {
                if (*literal & NGX_HTTP_AFFILIATE_AGENT_MASK) {
                    *masked = p;
                }

                if (!(*literal & NGX_HTTP_AFFILIATE_AGENT_WEAK)
                    || *masked != p)
                {
                    seen |= *literal & NGX_HTTP_AFFILIATE_AGENT_KINDS;
                }
            }

            if (*literal & NGX_HTTP_AFFILIATE_AGENT_LAST) {
                break;
            }
        }
    }

    return seen;
}
`;
}

// ---- main ---------------------------------------------------------------------------------------

const [crawlerDir, isbotDir] = process.argv.slice(2);

if (isbotDir === undefined) {
    process.stderr.write('usage: node agents.mjs CRAWLER-USER-AGENTS-DIR ISBOT-DIR\n');
    process.exit(2);
}

const packages = [crawlerDir, isbotDir].map((dir) => {
    const { name, version, license } = JSON.parse(readFileSync(join(dir, 'package.json'), 'utf8'));

    return `${name} ${version} (${license})`;
});
const crawlers = JSON.parse(readFileSync(join(crawlerDir, 'crawler-user-agents.json'), 'utf8'));
const { list: isbotPatterns } = await import(pathToFileURL(join(isbotDir, 'index.mjs')));

const all = [
    ...PREVIEWS.map((t) => literalOf(t, PREVIEW)),
    ...PROGRAMS.map((t) => literalOf(t, STRONG)),
    ...WORDS.map((t) => literalOf(t, WEAK)),
    ...MASKS.map((t) => literalOf(t, MASK)),
    ...SHIELDS.map((t) => literalOf(t, SHIELD)),
    ...fromCrawlerList(crawlers),
    ...fromIsbot(isbotPatterns),
];
const literals = reduce(all);
let missed = 0;

for (const { pattern, instances } of crawlers) {
    for (const agent of instances) {
        const given = classify(agent, literals);

        if (given === 'human') {
            const why = LEFT_OUT.get(pattern);

            missed++;
            process.stderr.write(`no match: ${agent}\n    ${pattern}, ${why ?? 'not left out'}\n`);
        }
        if (given !== classify(agent, all)) {
            throw new Error(`reduced too far: ${agent}`);
        }
    }
}
process.stderr.write(`${crawlers.flatMap((c) => c.instances).length} examples, `
    + `${missed} not matched\n`);
process.stdout.write(write(literals, packages, readFileSync(join(crawlerDir, 'LICENSE'), 'utf8')));

<?php
// What a shop needs of Affiliated: README.md beside this has the five minutes. Takes sign.php along, and nothing else.
//
//   php shop.php landing 'affiliate_click_id=06h0...&utm_source=x' [DAYS]    the header that keeps the click in a cookie
//   php shop.php tell STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]    reports, through the outbox
//   php shop.php try  STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]    what would become of it; nothing is recorded
//   php shop.php send [now]                                                  what is due in the outbox; for cron
//   php shop.php outbox                                                      what waits, and what was refused for good
//   php shop.php api METHOD PATH [JSON | @FILE.csv [IDEMPOTENCY_KEY]]        any call of the API
//
// In a shop of your own: Affiliated\landing_cookie(), Affiliated\click_of() and Affiliated\tell().

declare(strict_types=1);

namespace Affiliated;

// sign.php is a program, too: its first line is no output of who includes it.
ob_start();
require_once __DIR__ . '/sign.php';
ob_end_clean();

const CLICK_ID = '/^[0-9a-z]{39}$/D';

// The Set-Cookie of a page that a buyer lands on, or null. $days: the campaign's attribution window.
function landing_cookie(string $query, int $days = 30): ?string
{
    parse_str($query, $fields);
    $click = $fields['affiliate_click_id'] ?? '';

    if (!is_string($click) || !preg_match(CLICK_ID, $click)) {
        return null;
    }

    return sprintf('affiliate_click_id=%s; Max-Age=%d; Path=/; Secure; HttpOnly; SameSite=Lax', $click, $days * 86400);
}

// The buyer's click at the order, of $_COOKIE; null if nobody sent him. Keep it with the order.
function click_of(array $cookies): ?string
{
    $click = $cookies['affiliate_click_id'] ?? '';

    return is_string($click) && preg_match(CLICK_ID, $click) ? $click : null;
}

// One file an event: when it is due, how often it was tried, its key, the event, and the last answer; a line each.
function outbox(): string
{
    return getenv('AFFILIATE_OUTBOX') ?: 'outbox';
}

// As a whole, or not at all.
function write_file(string $path, string ...$lines): void
{
    $part = dirname($path) . '/.' . basename($path) . '.' . getmypid();
    $text = implode('', array_map(fn ($line) => str_replace("\n", ' ', $line) . "\n", $lines));

    if (!is_dir(dirname($path)) && !mkdir(dirname($path), 0777, true) && !is_dir(dirname($path))) {
        throw new \RuntimeException('cannot make ' . dirname($path));
    }

    $file = fopen($part, 'w');
    if ($file === false || fwrite($file, $text) !== strlen($text) || !fflush($file) ||
        (function_exists('fsync') && !fsync($file)) || !fclose($file) || !rename($part, $path)) {
        throw new \RuntimeException("cannot write $path");
    }
}

// Keeps the event, then tries to send it: call it when the order's own transaction is done. [status, answer]
function tell(array $event): array
{
    ksort($event);
    $body = json_encode($event, JSON_UNESCAPED_SLASHES | JSON_THROW_ON_ERROR);
    // The same event has the same key, whenever and however often it is told.
    $key = $event['status'] . '-' . substr(hash('sha256', $body), 0, 32);
    write_file(outbox() . "/$key", '0', '0', $key, $body, '');

    return send_file(outbox() . "/$key");
}

// Sent, it is gone; refused for good, it moves to refused/; else it waits 1, 2, 4 ... 60 minutes for the next try.
function send_file(string $path): array
{
    [, $tries, $key, $body] = explode("\n", file_get_contents($path));
    $tries = (int) $tries + 1;
    [$status, $answer] = $result = attempt('POST', setting('AFFILIATE_URL'), $key, $body);
    $said = sprintf('%03d %s', $status, $answer);

    if ($status >= 200 && $status < 300) {
        @unlink($path);
    } elseif (in_array($status, [0, 401, 403, 408, 409, 429], true) || $status >= 500) {    // not this event's fault
        write_file($path, (string) (time() + min(60 * 2 ** ($tries - 1), 3600)), (string) $tries, $key, $body, $said);
    } else {
        write_file(outbox() . "/refused/$key", '0', (string) $tries, $key, $body, $said);
        @unlink($path);
    }

    return $result;
}

function waiting(string $directory): array
{
    return array_filter(glob("$directory/[a-z]*-*") ?: [], 'is_file');
}

// Two at once send an event twice, which counts once.
function send(bool $now = false): int
{
    $failed = 0;

    foreach (waiting(outbox()) as $path) {
        if ($now || (int) file_get_contents($path) <= time()) {
            [$status] = send_file($path);
            printf("%03d %s\n", $status, basename($path));
            $failed |= (int) ($status < 200 || $status > 299);
        }
    }

    return $failed;
}

function list_outbox(): int
{
    foreach (['waiting' => outbox(), 'refused' => outbox() . '/refused'] as $state => $directory) {
        foreach (waiting($directory) as $path) {
            [, $tries, , $body, $answer] = explode("\n", file_get_contents($path));
            echo "$state, tried $tries times: $body $answer\n";
        }
    }

    return 0;
}

function event_of(string $status, string $order, string $click, string $amount = '', string $currency = '',
    string $refund = ''): array
{
    return array_filter(['status' => $status, 'order_id' => $order, 'click_id' => $click, 'amount' => $amount,
        'currency' => $currency, 'refund_id' => $refund], fn ($value) => $value !== '');
}

function api(string $method, string $path, string $body = '', string $key = ''): array
{
    $type = 'application/json';

    if (substr($body, 0, 1) === '@') {
        [$file, $type] = [substr($body, 1), 'text/csv'];
        if (($body = @file_get_contents($file)) === false) {
            throw new \RuntimeException("cannot read $file");
        }
    }
    // Sent again within this call it counts once; give a key of your own for calls that may be repeated later.
    if ($key === '' && $method === 'POST') {
        $key = bin2hex(random_bytes(16));
    }

    return call($method, setting('AFFILIATE_API') . $path, $key, $body, $type);
}

function shop_main(array $arguments): int
{
    $command = array_shift($arguments);
    $count = count($arguments);

    if ($command === 'landing' && $count >= 1 && $count <= 2) {
        $cookie = landing_cookie($arguments[0], (int) ($arguments[1] ?? 30));
        echo $cookie === null ? "no click\n" : "Set-Cookie: $cookie\n";
        return 0;
    }
    if ($command === 'tell' && $count >= 3 && $count <= 6) {
        return show(tell(event_of(...$arguments)));
    }
    if ($command === 'try' && $count >= 3 && $count <= 6) {
        return show(api('POST', '/merchants/' . setting('AFFILIATE_MERCHANT') . '/dry-runs',
            json_encode(['body' => json_encode(event_of(...$arguments))])));
    }
    if ($command === 'send' && ($arguments === [] || $arguments === ['now'])) {
        return send($count === 1);
    }
    if ($command === 'outbox' && $count === 0) {
        return list_outbox();
    }
    if ($command === 'api' && $count >= 2 && $count <= 4) {
        return show(api(...$arguments));
    }

    fwrite(STDERR, "usage: shop.php landing | tell | try | send | outbox | api ..., as the first lines of it say\n");
    return 2;
}

if (realpath($_SERVER['SCRIPT_FILENAME']) === __FILE__) {
    run('Affiliated\shop_main');
}

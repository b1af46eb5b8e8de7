#!/usr/bin/env php
<?php
// Signs calls to Affiliated, with nothing but PHP (7.4 or newer; no curl extension); by itself it reports an order.
//
//   export AFFILIATE_URL=https://go.example.com/v1/conversions
//   export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
//   ./sign.php NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
//
// The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
// Prints status and answer; exit code 0 if the event was accepted. `./sign.php --vector` prints the documented signature.

declare(strict_types=1);

namespace Affiliated;

// The bytes that are sent must be the bytes that are signed: serialise once, use it for both.
function sign(string $secret, string $timestamp, string $method, string $pathWithQuery, string $idempotencyKey,
    string $body): string
{
    return hash_hmac('sha256', "v1\n$timestamp\n$method\n$pathWithQuery\n$idempotencyKey\n$body", $secret);
}

// One call, signed with AFFILIATE_KEY: [status, answer]; status 0 if there was no answer.
function attempt(string $method, string $url, string $idempotencyKey = '', string $body = '',
    string $type = 'application/json'): array
{
    $query = parse_url($url, PHP_URL_QUERY);
    $path = (parse_url($url, PHP_URL_PATH) ?: '/') . ($query === null ? '' : "?$query");
    $now = (string) time();
    $signature = sign(setting('AFFILIATE_SECRET'), $now, $method, $path, $idempotencyKey, $body);
    $headers = ['Connection: close', 'Affiliate-Key: ' . setting('AFFILIATE_KEY'), "Affiliate-Timestamp: $now",
        "Affiliate-Signature: v1=$signature"];

    if ($idempotencyKey !== '') {
        $headers[] = "Idempotency-Key: $idempotencyKey";
    }
    if ($body !== '') {
        $headers[] = "Content-Type: $type";
    }

    $context = stream_context_create(['http' => [
        'method' => $method,
        'timeout' => 10,
        'ignore_errors' => true,
        'follow_location' => 0,
        'protocol_version' => '1.1',
        'header' => $headers,
        'content' => $body,
    ]]);
    $stream = @fopen($url, 'r', false, $context);

    if ($stream === false) {
        return [0, 'no answer: ' . (error_get_last()['message'] ?? '')];
    }

    $lines = stream_get_meta_data($stream)['wrapper_data'];
    $status = (int) (explode(' ', $lines[0])[1] ?? 0);
    $answer = stream_get_contents($stream);
    fclose($stream);

    return [$status, $answer === false ? '' : $answer];
}

// Whether a call without an answer, or with 5xx, was taken is unknown: under the same key it counts once.
function call(string ...$arguments): array
{
    foreach ([1, 2, 4, 8, 0] as $pause) {
        $result = attempt(...$arguments);
        if ($result[0] > 0 && $result[0] < 500) {
            break;
        }
        sleep($pause);
    }

    return $result;
}

function setting(string $name): string
{
    $value = getenv($name);

    if ($value === false || $value === '') {
        throw new \RuntimeException("set $name");
    }

    return $value;
}

function show(array $result): int
{
    printf("%03d\n%s\n", ...$result);

    return $result[0] >= 200 && $result[0] < 300 ? 0 : 1;
}

// Runs it as a program: what is wrong with the settings is said, and is exit code 2.
function run(callable $main): void
{
    try {
        exit($main(array_slice($GLOBALS['argv'], 1)));
    } catch (\RuntimeException $error) {
        fwrite(STDERR, $error->getMessage() . "\n");
        exit(2);
    }
}

function sign_main(array $arguments): int
{
    if ($arguments === ['--vector']) {
        $body = '{"click_id":"c_01J9","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}';
        echo sign('aks_test_3fQ9Zr7mW2', '1764000000', 'POST', '/v1/conversions', 'NP-1001-approved', $body), "\n";
        return 0;
    }

    if (count($arguments) !== 2) {
        fwrite(STDERR, "usage: sign.php IDEMPOTENCY_KEY JSON\n");
        return 2;
    }

    return show(call('POST', setting('AFFILIATE_URL'), $arguments[0], $arguments[1]));
}

if (realpath($_SERVER['SCRIPT_FILENAME']) === __FILE__) {
    run('Affiliated\sign_main');
}

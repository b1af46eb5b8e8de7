#!/usr/bin/env php
<?php
// Reports an order to Affiliated, with nothing but PHP (7.4 or newer; no curl extension).
//
//   export AFFILIATE_URL=https://go.example.com/v1/conversions
//   export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
//   ./sign.php NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
//
// The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
// Prints status and answer; exit code 0 if the event was accepted. `./sign.php --vector` prints the documented signature.

declare(strict_types=1);

// The bytes that are sent must be the bytes that are signed: serialise once, use it for both.
function sign(string $secret, string $timestamp, string $method, string $pathWithQuery, string $idempotencyKey,
    string $body): string
{
    return hash_hmac('sha256', "v1\n$timestamp\n$method\n$pathWithQuery\n$idempotencyKey\n$body", $secret);
}

// One attempt: [status, answer]; status 0 if there was no answer.
function post(string $url, string $key, string $secret, string $idempotencyKey, string $body): array
{
    $query = parse_url($url, PHP_URL_QUERY);
    $path = (parse_url($url, PHP_URL_PATH) ?: '/') . ($query === null ? '' : "?$query");
    $now = (string) time();
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'timeout' => 10,
        'ignore_errors' => true,
        'follow_location' => 0,
        'protocol_version' => '1.1',
        'header' => [
            'Connection: close',
            'Content-Type: application/json',
            "Affiliate-Key: $key",
            "Affiliate-Timestamp: $now",
            "Idempotency-Key: $idempotencyKey",
            'Affiliate-Signature: v1=' . sign($secret, $now, 'POST', $path, $idempotencyKey, $body),
        ],
        'content' => $body,
    ]]);
    $stream = @fopen($url, 'r', false, $context);

    if ($stream === false) {
        return [0, 'no answer: ' . (error_get_last()['message'] ?? '')];
    }

    $headers = stream_get_meta_data($stream)['wrapper_data'];
    $status = (int) (explode(' ', $headers[0])[1] ?? 0);
    $answer = stream_get_contents($stream);
    fclose($stream);

    return [$status, $answer === false ? '' : $answer];
}

// Whether a call without an answer, or with 5xx, was taken is unknown: sent again under the same key it counts once.
function report(string $url, string $key, string $secret, string $idempotencyKey, string $body): array
{
    foreach ([1, 2, 4, 8, 0] as $pause) {
        $result = post($url, $key, $secret, $idempotencyKey, $body);
        if ($result[0] > 0 && $result[0] < 500) {
            break;
        }
        sleep($pause);
    }

    return $result;
}

function main(array $arguments): int
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

    $settings = array_map('getenv', ['AFFILIATE_URL', 'AFFILIATE_KEY', 'AFFILIATE_SECRET']);

    if (in_array(false, $settings, true) || in_array('', $settings, true)) {
        fwrite(STDERR, "set AFFILIATE_URL, AFFILIATE_KEY and AFFILIATE_SECRET\n");
        return 2;
    }

    [$status, $answer] = report($settings[0], $settings[1], $settings[2], $arguments[0], $arguments[1]);
    printf("%03d\n%s\n", $status, $answer);

    return $status >= 200 && $status < 300 ? 0 : 1;
}

exit(main(array_slice($argv, 1)));

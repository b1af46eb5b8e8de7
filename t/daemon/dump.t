# affiliated dump: the segments of a spool that nginx is writing, damaged ones, and entries of a stream.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my ($code, $out, $err);

sub lines { return map { JSON::PP::decode_json($_) } split /\n/, $_[0] }
sub of { my ($kind, @lines) = @_; return grep { $_->{kind} eq $kind } @lines }

# Readable for whom the harness runs affiliated as.
sub dump_file
{
    my $copy = $t->write('segment', $t->slurp(shift));
    chmod 0644, $copy;
    return $t->cli('dump', $copy);
}

$t->redis_start;
$t->pg_start;
$t->link;
my $key = $t->api_key;
$t->nginx_start(http => 'affiliate_address_rate off;');
my $id;
for my $n (1 .. 20) {
    ($id) = $t->get("/r/abc?sub1=n$n")->{headers}{location} =~ /affiliate_click_id=(\w+)/;
}
is($t->call($key, { click_id => $id, order_id => 'NP-1', status => 'approved', amount => '1250.50', currency => 'NPR' })->{status}, 202, 'a call');

# --- segments -----------------------------------------------------------------------------------------------------------------

my (%clicks, @conversions, $sound);
for my $path (glob $t->path('spool') . '/*') {
    next unless -f $path && -s $path > 4096;
    ($code, $out, $err) = dump_file($path);
    my @lines = lines($out);
    my ($head) = of('segment', @lines) or next;
    is($code, 0, "a segment of $head->{channel} that is being written") or diag $out;
    is($head->{size}, -s $path, 'has the size that it says');
    $clicks{ $_->{record}{id} } = $_->{record} for of('click', @lines);
    push @conversions, map { $_->{record} } of('conversion', @lines);
    $sound = $path if of('click', @lines);
}
is(scalar keys %clicks, 20, 'every click is in the spool') or diag join ' ', glob $t->path('spool') . '/*';
is($clicks{ $t->uuid_of($id) }{sub1}, 'n20', 'with its sub-id');
is($clicks{ $t->uuid_of($id) }{address_prefix}, '127.0.0.0/24', 'and prefix');
is(scalar @conversions, 1, 'and the event');
is("$conversions[0]{order} $conversions[0]{amount} $conversions[0]{status} $conversions[0]{click}", 'NP-1 1250.50 approved ' . $t->uuid_of($id), 'as it was reported');

# --- damage -------------------------------------------------------------------------------------------------------------------------

my $bytes = $t->slurp($sound);
my ($at) = map { $_->{offset} } (of('click', lines((dump_file($sound))[1])))[4];
my $damaged = $bytes;
substr($damaged, $at + 40, 1) ^= "\xff";
($code, $out) = dump_file($t->write('damaged', $damaged));
is($code, 1, 'a damaged frame');
is(scalar(my @damage = of('damage', lines($out))), 1, 'is told');
is($damage[0]{offset}, $at, 'where it is');
is(scalar(my @left = of('click', lines($out))), 19, 'and what is behind it is found');
($code, $out) = dump_file($t->write('torn', substr $bytes, 0, $at + 50));
is($code, 1, 'a torn file');
is(scalar(@left = of('click', lines($out))), 4, 'gives what is whole');
substr($damaged, 20, 1) ^= "\xff";
($code, $out) = dump_file($t->write('damaged', $damaged));
is($code, 1, 'a damaged header');
like($out, qr/header is damaged/, 'is told');
($code, $out) = dump_file($t->write('text', "no segment\n" x 1000));
is($code, 1, 'any other file');
is((lines($out))[0]{kind}, 'foreign', 'is none of ours');
($code, $out) = dump_file($t->write('empty', ''));
is($code, 1, 'an empty one, too');
($code, $out, $err) = $t->cli('dump', '/does/not/exist');
is($code, 1, 'a file that is not there');
like($err, qr{/does/not/exist: No such file}, 'is named');

# --- streams -------------------------------------------------------------------------------------------------------------------------

my $made = produce($t, seed => $t->{seed} % 1000, count => 30, batch_records => 10, stream => 7);
produce($t, seed => 1 + $t->{seed} % 1000, count => 10, stream => 7, damage => 'mac');
($code, $out, $err) = $t->cli('dump', '--stream', 'clicks:7');
is($code, 1, 'a stream with a forged batch') or diag $err;
my @lines = lines($out);
is(join(' ', map { $_->{mac} } of('batch', @lines)), 'verified verified verified forged', 'is told');
is((of('batch', @lines))[0]{spool_id}, $made->{spool}, 'with the names of its batches');
is(scalar(@left = of('click', @lines)), 40, 'and all records');
($code, $out) = $t->cli('dump', '--stream', 'clicks:7', '--count', 3);
is($code, 0, 'three sound ones');
is(scalar(@left = of('batch', lines($out))), 3, 'are three');
($code, $out) = $t->cli('dump', '--stream', 'aff:clicks:7', '--from', (of('batch', @lines))[1]{id}, '--to', (of('batch', @lines))[2]{id});
is(scalar(@left = of('batch', lines($out))), 2, 'from one to another');
($code, $out, $err) = $t->cli('dump', '--stream', 'nope');
is($code, 1, 'a stream that there is not fails');
like($err, qr/nope: there is no such stream/, 'and is named');
($code, $out, $err) = $t->cli('dump', '--stream', 'clicks', '--count', 'all');
is($code, 2, '--count takes a number');
($code, $out, $err) = $t->cli('dump');
is($code, 2, 'it wants a file or a stream');
like($err, qr/^usage: /m, 'and says so');
done_testing();

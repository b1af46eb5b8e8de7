# What can't be applied goes to the dead letters, with its reason and whole; everything beside it is applied; and what was
# put right can be replayed, once.

use Affiliated::Test;
use Affiliated::Daemon;

my $t = Affiliated::Test->new;
my $seed = $t->{seed} % 100_000;

$t->redis_start;
$t->pg_start;
$t->daemon_start(roles => [qw(clicks conversions)], conf => { clicks => { threads => 1 } });

sub reasons { return join ' ', map { "$_=" . dead($t)->{$_} } sort keys %{ dead($t) } }
sub letters { return $t->cli_json('dead-letters', 'list', '--reason', $_[0]) }

# --- each kind of damage, beside sound batches ----------------------------------------------------------------------------

produce($t, seed => $seed, count => 100, batch_records => 10);
produce($t, seed => $seed + 1, count => 10, damage => 'mac');
produce($t, seed => $seed + 2, count => 21, damage => 'frame');
produce($t, seed => $seed + 3, count => 21, damage => 'record');
$t->redis('XADD', 'aff:clicks:0', '*', 'b', 'AFB1, but no batch');
$t->redis('XADD', 'aff:clicks:0', '*', 'other', 'field');
produce($t, seed => $seed + 4, count => 7, start_ms => midnight_ms(-40));
produce($t, seed => $seed + 5, count => 30, batch_records => 30);
my ($sound) = grep { length $_->[1] > 100 } raw($t, 'aff:clicks:0');
$t->redis('XADD', 'aff:conversions:0', '*', 'b', $sound->[1]);
produce($t, seed => $seed + 6, count => 50, batch_records => 10);
drained($t);

is(reasons(), 'corrupt_frame=1 forged_batch=1 malformed_batch=2 malformed_record=1 no_partition=7 wrong_channel=1',
    'each under its reason');
clicks_are($t, 100 + 10 + 20 + 30 + 50, 'whatever is sound is applied: before the damaged frame, around the record that is none');
my $forged = produce($t, seed => $seed + 7, count => 10, damage => 'mac');
drained($t);
is(acknowledged($t, $forged), 0, 'a forged batch acknowledges nothing: a real one of that name must not count as stored');
is(value($t, 'clicks', 'unverified_entries_total'), 4, 'what no key made is counted');
is(value($t, 'conversions', 'unverified_entries_total'), 1, 'where it came in');

# --- list and show ------------------------------------------------------------------------------------------------------------

my ($record) = letters('malformed_record');
is($record->{record}, 10, 'the record is named by its place');
my $shown = $t->cli_json('dead-letters', 'show', $record->{dead_letter});
is($shown->{decoded}{type}, 200, 'its whole frame is kept: its type');
is($shown->{decoded}{version}, 1, 'and its version');
cmp_ok(length($shown->{payload}) / 2, '==', $shown->{bytes}, 'and all its bytes');
my ($day) = letters('no_partition');
like($t->cli_json('dead-letters', 'show', $day->{dead_letter})->{decoded}{user_agent}, qr/^Mozilla/, 'a record that is sound is shown');
my ($code, $out, $err) = $t->cli('dead-letters', 'list');
is($code, 0, 'the list is printed');
like($out, qr/^dead_letter .*reason/, 'as a table');
is(scalar(split /\n/, $out), 1 + 14, 'with a line each');

# --- replay -------------------------------------------------------------------------------------------------------------------

($code, $out, $err) = $t->cli('dead-letters', 'replay', $record->{dead_letter});
is($code, 1, 'a record that is none can\'t be replayed');
like($err, qr/of type 200/, 'and says why');
my ($frame) = letters('corrupt_frame');
($code, $out, $err) = $t->cli('dead-letters', 'replay', $frame->{dead_letter});
is($code, 1, 'nor can damaged bytes');
like($err, qr/damaged/, 'and says so');
my ($mac) = letters('forged_batch');
($code, $out, $err) = $t->cli('dead-letters', 'replay', $mac->{dead_letter});
is($code, 1, 'nor a forged batch');
like($err, qr/no master key made/, 'and says so');
($code, $out, $err) = $t->cli('dead-letters', 'replay', '--reason', 'no_partition', '--json');
is($code, 0, 'clicks of a day without a partition can, all of a reason at once') or diag $err;
is(scalar(split /\n/, $out), 7, 'and are named');
clicks_are($t, 217, 'they are there now');
($code, $out, $err) = $t->cli('dead-letters', 'replay', $day->{dead_letter});
is($code, 1, 'once');
like($err, qr/replayed before/, 'and the second time says so');
clicks_are($t, 217, 'and does nothing');
my ($wrong) = letters('wrong_channel');
$t->cli_json('dead-letters', 'replay', $wrong->{dead_letter});
drained($t);
clicks_are($t, 217, 'a batch goes back to its own stream, where the inbox knows it');
is(scalar(my @left = letters('wrong_channel')), 0, 'and is done');

# Another master key is a reason that can be put right: the batch is of a nginx that has it already.
my $keys = $t->slurp($t->{keys});
$t->write('keys-new', 'new ' . 'ab' x 32 . "\n$keys");
produce($t, seed => $seed + 8, count => 10, key_file => $t->path('keys-new'));
drained($t);
is(dead($t)->{forged_batch}, 3, 'a batch under a key that the daemon lacks');
my ($late) = reverse sort { $a->{dead_letter} <=> $b->{dead_letter} } letters('forged_batch');
$t->write($t->{keys}, $t->slurp($t->path('keys-new')));
$t->daemon_signal('HUP');
my $probe = 0;
$t->wait_until('a batch under the new key', sub {
    my $made = produce($t, seed => $seed + 100 + $probe++, count => 1, key_file => $t->path('keys-new'));
    drained($t);
    return acknowledged($t, $made);
});
$t->cli_json('dead-letters', 'replay', $late->{dead_letter});
drained($t);
clicks_are($t, 228, 'is applied when it has it');

# --- what PostgreSQL refuses, and only that --------------------------------------------------------------------------------------

my $kept = produce($t, seed => $seed + 9, count => 40, batch_records => 20);
drained($t);
produce($t, seed => $seed + 9, count => 45, batch_records => 15, first => 20, start_ms => $kept->{start_ms}, spool => 'abc');
drained($t);
clicks_are($t, 228 + 65, 'of batches whose ids are partly there, the others are applied');
is(dead($t)->{refused}, 20, 'and those are refused, one by one');
like((letters('refused'))[0]{detail}, qr/^23505 /, 'because of their ids');
($code, $out, $err) = $t->cli('dead-letters', 'replay', '--reason', 'refused');
is($code, 0, 'replaying them finds that they are there') or diag $err;
clicks_are($t, 293, 'and adds nothing');

# A message that is no ASCII, cut in the middle of a character, would be refused itself.
$t->psql(<<'END');
create function public.refuse() returns trigger language plpgsql as
$$begin
    if new.link_id = 4711 then
        raise exception using errcode = '23514', message = 'x' || repeat('é', 100);
    end if;
    return new;
end$$;
create trigger refuse before insert on affiliate.click for each row execute function public.refuse();
END
produce($t, seed => $seed + 10, count => 3, link => 4711);
produce($t, seed => $seed + 11, count => 5);
drained($t);
is(dead($t)->{refused}, 23, 'what is refused in another language is a dead letter, too');
clicks_are($t, 298, 'and what comes behind it is applied');
books_hold($t);
# --- killed between the commit and the acknowledgement -----------------------------------------------------------------------

# Entries that nobody can name are in no inbox. They come again as they were: the same id, the same bytes.
my @junk = (['XADD', 'aff:clicks:0', '9999999999999-1', 'b', 'AFB1, but no batch'], ['XADD', 'aff:clicks:0', '9999999999999-2', 'other', 'field'],
    ['XADD', 'aff:clicks:0', '9999999999999-3', 'b', 'AFB1, but no batch']);
my $before = dead($t)->{malformed_batch};
$t->redis(@$_) for @junk;
drained($t);
is(dead($t)->{malformed_batch}, $before + 3, 'each entry is a dead letter, also with the bytes of another');
$t->daemon_stop;
$t->redis('DEL', 'aff:clicks:0');
$t->redis(@$_) for @junk;
$t->daemon_start(roles => [qw(clicks conversions)], conf => { clicks => { threads => 1 } });
$t->wait_until('the entries are read again', sub { value($t, 'clicks', 'unverified_entries_total') == 3 });
drained($t);
is(dead($t)->{malformed_batch}, $before + 3, 'an entry that was committed, but not acknowledged, is not recorded twice');

done_testing();

# People in more than one session at once.

use strict;
use warnings;

use Affiliated::Test;

my $t = Affiliated::Test->new;
$t->pg_start;
$t->psql(<<'END');
insert into affiliate.merchant (merchant_id, name, hosts) values (901, 'A', '{a.example}');
insert into affiliate.person (user_id, email, name, password, verified_at)
select n, 'p' || n || '@example.org', 'P' || n, '$scrypt$x', now() from generate_series(901, 902) n;
insert into affiliate.member (merchant_id, user_id, role) values (901, 901, 'owner'), (901, 902, 'owner');
insert into affiliate.session (user_id, token_hash, csrf_hash) values (901, 't901', 'c901'), (902, 't902', 'c902');
END

# All at once, each in a session of its own; what each printed, and the SQLSTATE of what it was refused.
sub together
{
    my @scripts = @_;
    my %running;
    my @answers;

    for my $n (0 .. $#scripts) {
        my $file = $t->write("session-$n.sql", $scripts[$n]);
        my $pid = fork // die "fork: $!\n";
        if (!$pid) {
            open STDOUT, '>', $t->path("session-$n.out");
            open STDERR, '>&', \*STDOUT;
            exec $t->pg_bin . '/psql', '-XqAt', '-v', 'VERBOSITY=sqlstate', '-h', $t->{pg_socket}, '-U', 'postgres', '-d', 'affiliate', '-f', $file
                or POSIX::_exit(127);
        }
        $running{$pid} = $n;
    }
    while (%running) {
        my $pid = wait;
        delete $running{$pid};
    }
    for my $n (0 .. $#scripts) {
        my $out = $t->slurp($t->path("session-$n.out"));
        push @answers, $out =~ /ERROR:\s+(\w{5})/ ? $1 : $out;
    }
    return @answers;
}

# Begins when all have come.
my $START = "select pg_advisory_lock_shared(1);\n";
sub at_once
{
    my @scripts = map { $START . $_ } @_;
    my $opener = "select pg_advisory_lock(1); do \$\$ begin for i in 1 .. 200 loop exit when (select count(*) from pg_locks where locktype = 'advisory' "
        . "and not granted) >= " . @scripts . "; perform pg_sleep(0.05); end loop; end \$\$; select pg_advisory_unlock(1);\n";
    my @answers = together($opener, map { "select pg_sleep(0.2);\n$_" } @scripts);
    return @answers[1 .. $#answers];
}

# --- one Idempotency-Key -----------------------------------------------------------------------------------------------------------------

my $call = q{select r from affiliate.api_call('{"session": "t901", "csrf": "c901"}', 'merchant_create',
    '{"business_name": "Twice", "website": "https://twice.example/"}', '{"idempotency_key": "one", "body_hash": "b"}') r limit 1;};
my @answers = together("begin;\n$call\nselect pg_sleep(2);\ncommit;\n", "select pg_sleep(0.7);\n$call");
like($answers[0], qr/"status": 201/, 'the first is answered');
is($answers[1], 'AF409', 'the second, meanwhile, is told that it is');
@answers = together($call);
like($answers[0], qr/"replayed": true/, 'later it gets the answer of the first');
@answers = at_once(($call =~ s/"one"/"many"/r) x 8);
is(scalar(grep { /"status": 201/ && !/replayed/ } @answers), 1, 'of eight at once one is done');
is(scalar(grep { /replayed|AF409/ } @answers), 7, 'the others are told so, or get its answer');
is($t->value(q{select count(*) from affiliate.merchant where name = 'Twice'}), 2, 'a key each, an effect each');
$call = $call =~ s/"one"/"rolled back"/r;
@answers = together("begin;\n$call\nselect pg_sleep(1);\nrollback;\n", "select pg_sleep(1.8);\n$call");
like($answers[1], qr/^\{"etag".*"status": 201|"status": 201/, 'what was rolled back has no answer');
unlike($answers[1], qr/replayed/, 'and is done anew');
$t->psql(q{update affiliate.api_answer set created_at = now() - interval '73 hours'});
$t->psql($call =~ s/"rolled back"/"new $_"/r =~ s/Twice/Later/r =~ s/t901/t902/r =~ s/c901/c902/r) for 1;
is($t->value('select count(*) from affiliate.api_answer'), 2, 'a new answer makes room of two that are too old');

# --- who leaves last, who tries fastest ---------------------------------------------------------------------------------------------------

@answers = at_once(map { my $other = 1803 - $_; qq{select affiliate.api_call('{"session": "t$_", "csrf": "c$_"}', 'member_delete',
    '{"merchant": "901", "user": "$other"}', '{}');} } 901, 902);
is($t->value("select count(*) from affiliate.member where merchant_id = 901 and role = 'owner'"), 1, 'of two owners who throw each other out at once one stays');
@answers = at_once((q{select affiliate.login_begin('{"email": "p901@example.org"}', '{}') -> 'locked_for';}) x 12);
is(scalar(grep { /^\s*0$/m } @answers), 5, 'of twelve who try at once five may');
@answers = at_once(map { qq{select affiliate.api_call('{}', 'registration_person_create', '{"email": "new\@example.org", "name": "N", "_password": "\$scrypt\$x"}',
    '{"idempotency_key": "r$_"}');} } 1 .. 8);
is($t->value(q{select count(*) from affiliate.person where email = 'new@example.org'}), 5, 'of eight who register at once five are mailed');
$t->psql(q{insert into affiliate.person (user_id, email, name, totp, verified_at) values (903, 'p903@example.org', 'P', 'x', now())});
@answers = at_once(map { qq{select affiliate.login_end('{"user_id": 903, "token": "c$_", "csrf": "c", "totp_step": 7}', '{}');} } 1 .. 6);
is($t->value('select count(*) from affiliate.session where user_id = 903'), 1, 'a code is good for one of six who have it at once');
done_testing();

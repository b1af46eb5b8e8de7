# The role mail: every template as a mail that can be read, tokens that work, and what becomes of each notice when servers
# refuse, put off, hang, drop or are away; two daemons at once; kill -9 between the server's "250" and the commit.

use Affiliated::Api;
use Affiliated::Daemon;
use Affiliated::Smtp;

my $t = Affiliated::Api->new;
my $top = $Affiliated::Test::TOP;
my %mail = (from => 'Affiliated Größe <no-reply@mail.example>', site => 'https://aff.example/', interval => '50ms', timeout => '20s', tls => 'off');

$t->pg_start;

sub quote { my $text = shift; $text =~ s/'/''/g; return "'$text'" }

sub queue
{
    my ($user, $template, $data) = @_;
    return $t->psql('select affiliate.notify(' . ($user // 'null') . ', ' . quote($template) . ', ' . quote(JSON::PP->new->canonical->utf8->encode($data || {})) . '::jsonb)');
}

sub states { return join ' ', map { "$_->[0] $_->[1]" } $t->rows("select coalesce(data ->> 'to', template), state from affiliate.notice order by notice_id") }
sub state_of { return $t->value('select state from affiliate.notice where data @> ' . quote(JSON::PP::encode_json({ to => $_[0] }))) }
sub error_of { return $t->value('select error from affiliate.notice where data @> ' . quote(JSON::PP::encode_json({ to => $_[0] }))) }
sub settled { my $seconds = shift; return $t->wait_until('mails', sub { $t->value("select count(*) from affiliate.notice where state = 'waiting'") == 0 }, $seconds) }
sub forget { $t->psql('truncate affiliate.notice') }
sub restart { my %o = @_; $t->daemon_stop if $t->alive('daemon'); return $t->daemon_start(roles => ['mail'], conf => { mail => { %mail, %o } }) }
sub maildir { my $at = shift || 'mails'; return map { Affiliated::Smtp::parse($t->slurp($_)) } sort glob $t->path("state/$at/new/*") }
sub empty_maildir { unlink glob $t->path('state/mails/new/*') }
sub flat { my $text = shift; $text =~ s/\s+/ /g; return $text }

# --- settings ---------------------------------------------------------------------------------------------------------

for my $case (
    [{}, qr/set either mail\.server.*or mail\.maildir/],
    [{ server => 'smtp://localhost', maildir => '/tmp' }, qr/set either/],
    [{ maildir => 'mails' }, qr/mail\.maildir has to begin with/],
    [{ server => 'http://localhost' }, qr{begins neither with smtp:// nor with smtps://}],
    [{ server => 'smtp://me:secret@localhost' }, qr/user and password are settings of their own/],
    [{ server => 'smtp://localhost', from => '' }, qr/set mail\.from/],
    [{ server => 'smtp://localhost', from => 'nobody' }, qr/set mail\.from/],
    [{ server => 'smtp://localhost', from => 'Me <a@b@c>' }, qr/set mail\.from/],
    [{ server => 'smtp://localhost', site => '' }, qr/set mail\.site/],
    [{ server => 'smtp://localhost', site => 'http://aff.example' }, qr/mail\.site is not like/],
    [{ server => 'smtp://localhost', site => 'https://aff.example/?a=b' }, qr/mail\.site is not like/],
    [{ server => 'smtp://localhost', user => 'me' }, qr/mail\.user and mail\.password_file go together/],
    [{ server => 'smtp://mail.example', user => 'me', password_file => $t->write('password', "hunter2\n") }, qr/in the clear/],
    [{ server => 'smtp://localhost:1' }, qr{mail: smtp://localhost:1: the mail server: }],
    )
{
    my ($conf, $said) = @$case;
    chmod 0644, $t->path('password');
    $t->daemon_conf(roles => ['mail'], conf => { mail => { %mail, %$conf } });
    my ($code, $out) = $t->cli('check');
    like($out, qr/^FAIL  .*$said/m, 'check says: ' . ($out =~ /^FAIL  (?!Redis)(.*)/m)[0]);
    unlike($out, qr/hunter2|secret/, 'and no secret');
}
$t->daemon_start(roles => ['mail'], conf => { mail => { interval => '50ms' } });
ok($t->wait_until('what is missing', sub { $t->daemon_log =~ /mail: set either mail\.server/ }), 'the role says at its start what is missing');
$t->daemon_stop;

# --- templates --------------------------------------------------------------------------------------------------------

my %known = map { $_ => 1 } $t->slurp("$top/worker/mail/letter.c") =~ /^    \{"(\w+)", /mg;
my %made_of = (merchant_ => [qw(approve reject suspend activate)], affiliate_ => [qw(approve reject suspend activate)],
    site_ => [qw(verified failed)], membership_ => [qw(approved rejected removed)], payout_ => [qw(paid failed)],
    webhook_disabled_ => [qw(gone failing)]);
my (%queued, @odd);
for my $path (glob "$top/sql/*.sql") {
    my $sql = $t->slurp($path);
    $sql =~ s/^\s*--.*//mg;
    while ($sql =~ /(?<!function )affiliate\.(?:notify|notify_owners|notify_payouts|mail_token)\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)/g) {
        my $call = $1;
        next if $call =~ /^(?:bigint|[ma]\.user_id, p_template|p_user_id, p_template|p_payouts bigint)/;
        my @texts = $call =~ /'((?!verify'|reset')[a-z]\w*)'( \|\|)?/;
        if (@texts && $texts[1]) {
            push @odd, "$path: $texts[0]…" unless $made_of{ $texts[0] };
            $queued{"$texts[0]$_"} = 1 for @{ $made_of{ $texts[0] } || [] };
        } elsif (@texts) {
            $queued{ $texts[0] } = 1;
        } else {
            push @odd, "$path: $call";
        }
    }
}
is_deeply(\@odd, [], 'every notice that sql/ queues names its template');
cmp_ok(scalar keys %queued, '>=', 26, 'they were found');
is_deeply([grep { !$known{$_} } sort keys %queued], [], 'each has its text');
is_deeply([grep { !$queued{$_} } sort keys %known], [], 'and no text is there for nothing');

# What people may write: each is data, wherever it gets.
my $evil = "Bcc: all\@example.com\r\nBcc: x\@example.com\r\n\r\n<b>{site}</b> \x{202e}gnp.exe \x{2028}\x{7}\x{85}=?UTF-8?B?QQ==?= \x{928}\x{947}\x{92a}\x{93e}\x{932} " . ('w' x 3000);
my %full = (site => 'evil', link => 'https://evil.example/', person => 'evil', to => 'to@example.com', name => $evil, reason => $evil, host => 'shop.example',
    merchant => 7, affiliate => 8, affiliate_name => $evil, campaign_name => $evil, merchant_name => $evil, email => 'new@example.com', kind => 'bank',
    account => '****4512', holder => $evil, payout => 9, amount => '100.00', tax => '15.00', net => '85.00', currency => 'NPR', number => 'INV-2026-000001', url => 'https://hooks.example/in', due_on => '2026-12-01', role => 'manager', expires_at => '2036-11-24T05:06:07.123456+00:00');
restart(maildir => $t->path('state/mails'));
my $person = $t->value(q{select affiliate.user_create('{"email": "asha@example.com", "name": "Asha Rai"}')});
my $user = JSON::PP::decode_json($person)->{user};
is($t->value("select count(*) from affiliate.notice where template = 'password_reset'"), 1, 'who is made without a password is sent a link');
settled();
my ($reset) = maildir();
like($reset->{text}, qr/^Hello Asha Rai,\n/, 'greeted by the name');
like($reset->{text}, qr{^https://aff\.example/reset#token=[A-Za-z0-9_-]{64}$}m, 'with a link of its own line, whole');
is($reset->{headers}{from}, "Affiliated Gr\x{f6}\x{df}e <no-reply\@mail.example>", 'From');
is($reset->{headers}{to}, '<asha@example.com>', 'To');
is($reset->{headers}{'auto-submitted'}, 'auto-generated', 'Auto-Submitted');
is($reset->{headers}{'mime-version'}, '1.0', 'MIME-Version');
like($reset->{headers}{date}, qr/\A(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d+ (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d \+0000\z/, 'Date');
like($reset->{headers}{'message-id'}, qr/\A<notice-\d+\.[0-9a-f]{16}\@mail\.example>\z/, 'Message-ID');
unlike($t->daemon_log, qr/token=|#token/, 'no token gets into the log');
my ($file) = glob $t->path('state/mails/new/*');
is((stat $file)[2] & 0777, 0600, 'nobody else reads the file');

for my $template (sort keys %known) {
    forget();
    empty_maildir();
    if ($template =~ /^(?:verify_email|password_reset)\z/) {
        my $purpose = $template eq 'verify_email' ? 'verify' : 'reset';
        $t->psql("delete from affiliate.token; select affiliate.mail_token($user, '$purpose', '$template')");
    } else {
        queue($user, $template, \%full);
    }
    settled();
    my @got = eval { maildir() };
    is($@ || scalar @got, 1, "$template is one mail") or diag states(), $t->value('select error from affiliate.notice');
    my ($subject, $text) = ($got[0]{headers}{subject}, $got[0]{text});
    ok(length $subject && length $subject <= 200 && $subject !~ /[\x00-\x1f\x7f-\x9f\x{202e}\x{2028}]/, 'its subject is a line') or diag $subject;
    ok(!grep({ $_ =~ /^(?:bcc|cc|x-.*)$/ } keys %{ $got[0]{headers} }), 'no header was added');
    unlike($text, qr/\{\w+\}(?<!\{site\})|[\x00-\x09\x0b-\x1f\x7f-\x9f\x{202a}-\x{202e}\x{2028}]/, 'every field is filled in, and clean');
    is(scalar(my @lines = $text =~ /^Bcc/mg), 0, 'what people write begins no line') if $template !~ /(?:approve|activate|removed|approved|requested|paid|issued|overdue)$/;
    like($text, qr{https://aff\.example[ :.,\n]|https://aff\.example/(?:verify|reset)#token=}, 'it leads to the site, not elsewhere');
    unlike($text, qr{evil\.example}, 'whatever the data says');
    cmp_ok(length $text, '<', 4000, 'it is short');
}
forget();
empty_maildir();
queue($user, 'merchant_reject', { merchant => 1, name => 'Shop', reason => undef });
queue(undef, 'verify_email', { to => 'late@example.com', expires => 1 });
queue(undef, 'no_such', { to => 'who@example.com' });
queue(undef, 'site_verified', { to => 'a@example.com' });
queue(undef, 'totp_on', {});
queue(undef, 'totp_on', { to => $_ }) for "a\@example.com>\r\nRCPT TO:<b\@example.com", "a b\@example.com", "m\x{fc}ller\@example.com", 'x' x 300 . '@example.com', '"a@b"@example.com';
queue($user, 'totp_on');
settled();
is(join(' ', map { $_->[0] } $t->rows('select state from affiliate.notice order by notice_id')), 'sent dropped failed failed failed failed failed failed failed failed sent',
    'a notice that can be no mail is over, and the rest goes on');
my %why = map { $_->[0] => $_->[1] } $t->rows('select notice_id - (select min(notice_id) from affiliate.notice), error from affiliate.notice');
like($why{1}, qr/^it would have come after 1970-01-01 00:00 UTC/, 'too late');
like($why{2}, qr/no template "no_such"/, 'unknown');
like($why{3}, qr/field host is missing/, 'without what it should say');
like($why{4}, qr/names no recipient/, 'to nobody');
like($why{5}, qr/address can't be mailed to/, 'to more than one');
unlike((maildir())[0]{text}, qr/reason/, 'a reason that nobody gave is not mentioned');
cmp_ok(value($t, 'mail', 'undeliverable_total'), '>=', 8, 'and they are counted');
my $again = $t->value('select max(notice_id) from affiliate.notice');
$t->psql("update affiliate.notice set state = 'waiting', sent_at = null, next_at = now() where notice_id = $again");
settled();
is(scalar(my @once = maildir()), 2, 'sent again, it is one file still');

# --- tokens -------------------------------------------------------------------------------------------------------------

$t->daemon_stop;
empty_maildir();
$t->api_start(roles => [qw(api mail)], conf => { mail => { %mail, maildir => $t->path('state/mails') } });
my $c = $t->client;
is($c->post('/registrations/person', { email => 'mina@example.com', name => 'http://buy.example now', password => 'a long enough one' })->{status}, 202, 'somebody registers');
$t->wait_until('the mail', sub { maildir() });
my ($verify) = maildir();
is($verify->{headers}{to}, '<mina@example.com>', 'and gets a mail');
unlike($verify->{text}, qr/buy\.example/, 'without the name: who registered may have been anybody');
my ($token) = $verify->{text} =~ m{^https://aff\.example/verify#token=(\S+)$}m;
is($c->post('/email-verifications', { token => substr($token, 0, -1) . ($token =~ /A\z/ ? 'Q' : 'A') })->{status}, 404, 'another token does not do');
is($c->post('/email-verifications', { token => $token })->{status}, 200, 'this one does') or diag $token;
empty_maildir();
is($c->post('/password-resets', { email => 'mina@example.com' })->{status}, 202, 'a new password is asked for');
$t->wait_until('the mail', sub { maildir() });
($token) = (maildir())[0]{text} =~ m{^https://aff\.example/reset#token=(\S+)$}m;
is($c->put("/password-resets/$token", { password => 'another long one' })->{status}, 204, 'and set');
settled();
$t->daemon_stop;
$t->psql('update affiliate.token set created_at = now() - interval \'1 day\'');
is($t->value("select affiliate.mail_token((select user_id from affiliate.person where email = 'mina\@example.com'), 'reset', 'password_reset')"), '', 'a link');
$t->psql("update affiliate.token set used_at = now()");
restart(maildir => $t->path('state/mails'));
settled();
is($t->value('select state || error from affiliate.notice order by notice_id desc limit 1'), 'droppedits link has been used, or withdrawn', 'that was used meanwhile is not sent');

# --- a server -----------------------------------------------------------------------------------------------------------

forget();
my $smtp = Affiliated::Smtp->new($t);
restart(server => $smtp->url);
$t->psql("select affiliate.notify(null, 'totp_on', jsonb_build_object('to', 'many' || n || '\@example.com')) from generate_series(1, 60) n");
settled();
my @mails = $smtp->mails;
is(join(' ', map { $_->{to} } @mails), join(' ', map { "many$_\@example.com" } 1 .. 60), 'mails go in order');
is_deeply([grep { $_->{from} ne 'no-reply@mail.example' } @mails], [], 'from who sends them');
is(join(' ', map { $_->{connection} } @mails), '1 ' x 50 . join(' ', (2) x 10), 'a connection is used for fifty');
ok((eval { Affiliated::Smtp::parse($mails[0]{data}) } || {})->{text}, 'as they should be') or diag $@;
is(scalar(keys %{ { map { Affiliated::Smtp::parse($_->{data})->{headers}{'message-id'} => 1 } @mails } }), 60, 'each with its own Message-ID');
is(value($t, 'mail', 'sent_total'), 60, 'and counted');

forget();
restart(server => $smtp->url, timeout => '2s');
queue(undef, 'totp_on', { to => "$_\@example.com" }) for qw(rcpt550 rcpt450 data554 data451 drop hang fine);
# Two minutes, should a crowded machine have made it wait, too; but those are what libcurl alone would wait for hang.
ok($t->wait_until('the last one', sub { state_of('fine@example.com') eq 'sent' }, 110), 'what is refused, put off, dropped or never answered stops no other');
$t->wait_until('the others', sub { $t->value('select count(*) from affiliate.notice where state = \'waiting\' and error is null') == 0 });
is(state_of('rcpt550@example.com'), 'failed', '550 for the recipient is for good');
is(error_of('rcpt550@example.com'), 'the mail server said: 550 5.1.1 nobody here has this name', 'with what the server said');
is(state_of('data554@example.com'), 'failed', 'so is 554 for the text');
is(error_of('data554@example.com'), 'the mail server said: 554 5.7.1 this text is not wanted', 'with what it said');
for my $to (qw(rcpt450 data451 drop hang)) {
    is($t->value("select state || ' ' || tries || ' ' || (next_at > now() + interval '20 seconds') || ' ' || (next_at < now() + interval '2 minutes') from affiliate.notice where data ->> 'to' = '$to\@example.com'"),
        'waiting 1 true true', "$to waits a while");
}
like(error_of('rcpt450@example.com'), qr/^the mail server said: 450/, 'with what the server said');
like(error_of('hang@example.com'), qr/^the mail server: .*time/i, 'or did not');
my $tried = grep { /^rcpt450/ } $smtp->attempts;
$t->psql("update affiliate.notice set tries = 11, next_at = now() where data ->> 'to' = 'rcpt450\@example.com'");
$t->wait_until('the end', sub { state_of('rcpt450@example.com') eq 'failed' });
is(scalar(grep { /^rcpt450/ } $smtp->attempts), $tried + 1, 'tried for the twelfth time, it has failed');
like($t->daemon_log, qr/warning mail: notice \d+ \(totp_on\) can't be delivered: the mail server said: 550 5\.1\.1/, 'the log tells');

for my $away (qw(mail451 mail550 away stopped)) {
    forget();
    $away eq 'stopped' ? $smtp->stop : $smtp->mode($away);
    queue(undef, 'totp_on', { to => "$away$_\@example.com" }) for 1 .. 5;
    ok($t->wait_until('down', sub { status($t)->{roles}{mail}{state} eq 'down' }), "the server is away ($away): the role is down");
    sleep 1;
    is($t->value("select string_agg(distinct state || tries, ' ') from affiliate.notice"), 'waiting0', 'all wait, and none is held against them');
    if ($away eq 'stopped') {
        cmp_ok(value($t, 'mail', 'waiting_mails'), '==', 5, 'as the status says') if $t->wait_until('the count', sub { value($t, 'mail', 'waiting_mails') == 5 });
        $smtp = Affiliated::Smtp->new($t, port => $smtp->{port});
    } else {
        $smtp->mode('pass');
    }
    settled();
    is(scalar(grep { $_->{to} =~ /^\Q$away/ } $smtp->mails), 5, 'and go once it is back');
}

# --- two daemons ---------------------------------------------------------------------------------------------------------

forget();
second($t, 'other', roles => ['mail'], conf => { mail => { %mail, server => $smtp->url } });
$t->wait_until('both', sub { $t->slurp($t->path('other.log')) =~ /mail: works/ });
$t->psql("select affiliate.notify(null, 'totp_on', jsonb_build_object('to', 'pair' || n || '\@example.com')) from generate_series(1, 200) n");
settled();
is(join(' ', sort map { $_->{to} } grep { $_->{to} =~ /^pair/ } $smtp->mails), join(' ', sort map { "pair$_\@example.com" } 1 .. 200), 'two daemons send each mail once');
$t->_end('other', 'TERM');

# --- kill -9 --------------------------------------------------------------------------------------------------------------

forget();
$t->daemon_stop;
my $killed = 0;
srand $t->{seed};
for my $round (1 .. 8) {
    restart(server => $smtp->url);
    queue(undef, 'totp_on', { to => "round$round-$_\@example.com" }) for 1 .. 3;
    $smtp->kill_after($t->{processes}{daemon}, $round % 2 ? -1 : rand 0.004);
    queue(undef, 'totp_on', { to => "killer$round\@example.com" });
    $t->wait_until('the kill', sub { !$t->alive('daemon') });
    $killed++;
}
my $held = $t->value("select count(*) from affiliate.notice where state = 'waiting' and next_at > now()");
cmp_ok($held, '>=', 4, 'what it had in hand is its own for a while');
cmp_ok($held, '<=', 8, 'and nothing else is');
$t->psql("update affiliate.notice set next_at = next_at - interval '1 minute' where state = 'waiting'");
restart(server => $smtp->url);
settled();
my (%times, %ids);
for my $mail (grep { $_->{to} =~ /^(?:round|killer)/ } $smtp->mails) {
    $times{ $mail->{to} }++;
    $ids{ $mail->{to} }{ Affiliated::Smtp::parse($mail->{data})->{headers}{'message-id'} } = $mail->{data};
}
is($killed, 8, 'the daemon was killed between the server\'s 250 and its commit');
is(scalar keys %times, 8 * 4, 'no mail was lost');
is_deeply([grep { keys %{ $ids{$_} } != 1 } keys %ids], [], 'one that came twice has the same Message-ID');
my $twice = grep { $_ > 1 } values %times;
note("$twice came twice");
cmp_ok($twice, '>=', 1, 'some did come twice');
cmp_ok($twice, '<=', 8, 'but none that was not in hand');

# --- TLS, login --------------------------------------------------------------------------------------------------------------

SKIP: {
    skip 'IO::Socket::SSL is not installed: TLS is not tried', 1 unless Affiliated::Smtp::tls_there;
    my $ca = Affiliated::Smtp::authority($t)->{ca};
    for my $kind (qw(starttls smtps)) {
        forget();
        my $secure = Affiliated::Smtp->new($t, tls => $kind, auth => ['me', 'hunter2']);
        my %login = (server => $secure->url, tls => 'required', user => 'me', password_file => $t->path('password'));
        restart(%login, ca_file => $ca);
        queue(undef, 'totp_on', { to => "$kind\@example.com" });
        settled();
        my ($mail) = $secure->mails;
        is("$mail->{to} $mail->{tls} $mail->{user}", "$kind\@example.com $kind me", "a mail by $kind, logged in");
        my ($code, $out) = $t->cli('check');
        like($out, qr/^ok    mail: \Q$login{server}\E lets us in$/m, 'check connects');
        is(scalar(my @all = $secure->mails), 1, 'and sends nothing');
        restart(%login);
        queue(undef, 'totp_on', { to => "other-$kind\@example.com" });
        ok($t->wait_until('down', sub { status($t)->{roles}{mail}{state} eq 'down' }), 'without its authority the server is not trusted');
        is(state_of("other-$kind\@example.com"), 'waiting', 'and the mail waits');
        $t->write('wrong', "hunter3\n");
        chmod 0644, $t->path('wrong');
        restart(%login, ca_file => $ca, password_file => $t->path('wrong'));
        ok($t->wait_until('down', sub { status($t)->{roles}{mail}{reason} =~ /535 5\.7\.8 wrong password/ }), 'a wrong password is told');
        unlike($t->daemon_log, qr/hunter|aHVudGVy|bWUAaHVu/, 'and none gets into the log');
    }
    restart(server => $smtp->url, tls => 'required');
    forget();
    queue(undef, 'totp_on', { to => 'clear@example.com' });
    ok($t->wait_until('down', sub { status($t)->{roles}{mail}{state} eq 'down' }), 'a server without TLS gets no mail where TLS is required');
    is(state_of('clear@example.com'), 'waiting', 'it waits');
}

# --- what is over ---------------------------------------------------------------------------------------------------------------

forget();
$t->psql("insert into affiliate.notice (template, data, created_at, state, sent_at) values ('totp_on', '{}', now() - interval '91 days', 'sent', now()),
    ('totp_on', '{}', now() - interval '89 days', 'failed', null)");
restart(server => $smtp->url);
ok($t->wait_until('it to go', sub { $t->value('select count(*) from affiliate.notice') == 1 }), 'after mail.keep nothing is left of a notice');
done_testing();

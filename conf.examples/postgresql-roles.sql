-- PostgreSQL's rights where the daemon's login is not to own the books: run by psql as the user postgres, once.
--
--   affiliate_owner   owns the database and all in it, and can not log in
--   affiliated        the daemon's login: adds clicks and calls functions, no more
--   affiliate_clerk   gives the commands of `affiliated`: merchants, links, keys, reviews, audits, people
--   affiliate_tenant  what operations of the API run as; can not log in, and sees one tenant's rows at a time
--
-- Before it, as the user postgres, who alone may be the owner (again after each upgrade):
--
--   createuser --no-login affiliate_tenant && createuser --no-login --role=affiliate_tenant affiliate_owner
--   createuser affiliated && createuser affiliate_clerk
--   createdb --owner=affiliate_owner --encoding=UTF8 --template=template0 affiliate
--   PGOPTIONS='-c role=affiliate_owner' affiliated migrate
--
-- A database that belongs to the daemon's login is handed over first, as a superuser, in it:
--
--   alter database affiliate owner to affiliate_owner;
--   reassign owned by affiliated to affiliate_owner;

set role affiliate_owner;
select affiliate.grant_rights('affiliated');
select affiliate.grant_api_rights('affiliated');     -- if it serves the API: or a login of its own
reset role;

-- That login can have click partitions dropped, as retention does, but none younger than this. To whatever partitions.retention is:
--
--   set role affiliate_owner; update affiliate.retention_floor set days = 400;

-- To whom commands are to be allowed, besides:
--
--   set role affiliate_owner; select affiliate.grant_rights('affiliate_clerk', true);
--
-- (`grant_rights('affiliated', true)`, if they are given as the daemon's own user.) Rights of what an upgrade adds are given by
-- `affiliated migrate` to whoever had those before.

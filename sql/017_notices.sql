select 1; -- stand-in, until the notices are here

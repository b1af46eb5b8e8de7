# Sources of affiliated, beside protocol/ and build/migrations.c (worker/migrations.sh sql/*.sql).

WORKER_SRCS = \
	worker/check.c \
	worker/clicks.c \
	worker/config.c \
	worker/conversions.c \
	worker/copy.c \
	worker/holds.c \
	worker/log.c \
	worker/main.c \
	worker/migrate.c \
	worker/notify.c \
	worker/partitions.c \
	worker/pg.c \
	worker/projection.c \
	worker/redis.c \
	worker/role.c \
	worker/run.c \
	worker/status.c \
	worker/stream.c \
	$(sort $(wildcard worker/command_*.c worker/dump.c))

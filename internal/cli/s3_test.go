package cli

import (
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// wal-push and wal-fetch do not look at the bucket first, unless they are told to.
func TestABucketIsLookedAtFirstWhereThatIsAskedFor(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	environ := []string{
		"WALG_S3_PREFIX=s3://no-such-bucket/x", "AWS_ENDPOINT=" + server.Endpoint, "AWS_S3_FORCE_PATH_STYLE=true", "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + server.SecretKey,
	}
	for value, says := range map[string]string{"true": "no/such/file", "false": "no-such-bucket"} {
		code, _, errs := run(t, append(environ, "S3_SKIP_VALIDATION="+value), "wal-push", "/no/such/file")
		if last := errs[strings.Index(errs, "walden: "):]; code != 1 || !strings.Contains(last, says) {
			t.Errorf("S3_SKIP_VALIDATION=%s: exit code %d\n%s", value, code, errs)
		}
	}
}

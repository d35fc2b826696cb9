#!/bin/bash
# Whether the image of a model may be pushed, as `push=true` or `push=false`; an error where it must not be.
#
# LICENCE: of the weights. A non-commercial one is pushed only where the package is there and private: GitHub makes a new
# package of a public repository public by inheritance, so that it has to be made by hand once, by pushing anything to it,
# and be set to private. Without the token there are no weights to push.
set -euo pipefail
if [ "$LICENCE" != non-commercial ]; then
  echo push=true
  exit
fi
if [ -z "${HUGGING_FACE_TOKEN:-}" ]; then
  echo "::notice::no HUGGING_FACE_TOKEN among the secrets: $PACKAGE is not built" >&2
  echo push=false
  exit
fi
scope=$([ "${OWNER_TYPE:-}" = Organization ] && echo "orgs/$OWNER" || echo "users/$OWNER")
visibility=$(gh api "/$scope/packages/container/$PACKAGE" --jq .visibility 2>/dev/null || echo missing)
if [ "$visibility" != private ]; then
  echo "::error::$PACKAGE holds weights that may not be handed on, and the package is $visibility: it must be private" >&2
  exit 1
fi
echo push=true

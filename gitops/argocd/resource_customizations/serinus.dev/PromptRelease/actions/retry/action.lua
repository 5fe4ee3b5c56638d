-- Tries the revision that failed last again. The request names the revision, so that a late click never hits a newer one.
local os = require("os")
local revision = obj.status ~= nil and obj.status.failedRevision or nil
if revision == nil then
  error("no revision of this release has failed: there is nothing to retry")
end
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["serinus.dev/retry"] = revision .. " by=argocd at=" .. os.date("!%Y-%m-%dT%H:%M:%SZ")
return obj

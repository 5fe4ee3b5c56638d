-- Lets the canary go on from the step that waits. The request names the revision, so that a late click never hits a newer one.
local os = require("os")
local revision = obj.status ~= nil and obj.status.canary ~= nil and obj.status.canary.revision or nil
if revision == nil then
  error("no canary runs: there is nothing to approve")
end
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["serinus.dev/approve"] = revision .. " by=argocd at=" .. os.date("!%Y-%m-%dT%H:%M:%SZ")
return obj

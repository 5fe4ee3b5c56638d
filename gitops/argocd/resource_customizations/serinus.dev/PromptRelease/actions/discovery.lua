-- Which requests the operator would carry out now. A status of an earlier generation says nothing about that.
local status = obj.status or {}
local canary, phase, suspended = status.canary, status.phase, obj.spec.suspend == true
local current = (status.observedGeneration or -1) == (obj.metadata.generation or 0)
local runs = current and canary ~= nil
local held = runs and canary.held or nil
local bakes = runs and status.previous ~= nil
local reason
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    reason = condition.reason
  end
end
-- A bake ends by a person's word when it is held, or when what served before is down.
local endable = bakes and (held ~= nil or reason == "BackendNotReady")
local judgement = held == "Inconclusive" or held == "OneCaller"
local failed = status.failedRevision ~= nil and phase == "RolledBack"

local actions = {}
actions["approve"] = {
  ["disabled"] = not (runs and not suspended and (phase == "AwaitingApproval" or judgement or endable)),
  ["iconClass"] = "fa fa-fw fa-check",
}
actions["promote"] = {
  ["disabled"] = not (runs and (not bakes or endable)),
  ["iconClass"] = "fa fa-fw fa-forward",
}
actions["abort"] = {
  ["disabled"] = not runs,
  ["iconClass"] = "fa fa-fw fa-times-circle",
}
actions["retry"] = {
  ["disabled"] = not (current and failed),
  ["iconClass"] = "fa fa-fw fa-redo",
}
actions["suspend"] = {
  ["disabled"] = suspended,
  ["iconClass"] = "fa fa-fw fa-pause",
}
actions["resume"] = {
  ["disabled"] = not suspended,
  ["iconClass"] = "fa fa-fw fa-play",
}
return actions

-- Lets a suspended rollout go on.
obj.spec.suspend = false
return obj
